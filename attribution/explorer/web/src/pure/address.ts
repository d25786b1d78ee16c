// The state of the page as the fragment of its URL. Browsers do not send fragments, and they also work in files.
//
// Parsing never fails: invalid parts are listed in `problems`, and the valid ones are applied.

import type { Span } from "../types.ts";

export type Panel = "inputs" | "concepts" | "evidence" | "considered";
export const PANELS: readonly Panel[] = ["inputs", "concepts", "evidence", "considered"];
export type Column = "plain" | "steered" | "random" | "prompt";
export const COLUMNS: readonly Column[] = ["plain", "steered", "random", "prompt"];
export type Strengths = Readonly<Record<string, number>>;

export interface Address {
  p?: string; // the prompt
  given?: string; // a given text after it, in place of a written one
  n?: number; // tokens
  seed?: number;
  t?: number; // temperature
  top_p?: number;
  rep?: number; // repetition penalty
  cfg?: number;
  steps?: number;
  amp?: Strengths;
  sup?: Strengths;
  clamp?: Strengths;
  at?: Span;
  step?: number;
  panel?: Panel;
  pin?: readonly Span[];
  cmp?: readonly Column[];
  case?: string;
  fp?: string;
  lang?: "en" | "ko";
}

const NUMBERS = ["n", "seed", "t", "top_p", "rep", "cfg", "steps", "step"] as const;
const STRENGTHS = ["amp", "sup", "clamp"] as const;
const WHOLE = new Set<string>(["n", "seed", "steps", "step"]);
export const LONG = 1_500; // characters of a prompt, above which it is compressed
export const TOO_LONG = 8_000; // of a fragment, above which a file is the better way

export function formatSpan([start, end]: Span): string {
  return end === start + 1 ? `${start}` : `${start}-${end}`;
}

export function parseSpan(text: string): Span | null {
  const match = /^(\d{1,7})(?:-(\d{1,7}))?$/.exec(text);
  if (match === null) return null;
  const start = Number(match[1]);
  const end = match[2] === undefined ? start + 1 : Number(match[2]);
  return start < end ? [start, end] : null;
}

function parseNumber(name: string, text: string): number | null {
  if (!/^-?\d{1,12}(\.\d{1,12})?$/.test(text)) return null;
  const value = Number(text);
  return WHOLE.has(name) && (!Number.isInteger(value) || value < 0) ? null : value;
}

/** Parses "Threads:0.5,group:topic:1". The strength follows the last colon, since names can contain colons. */
function parseStrengths(text: string): Strengths | null {
  const result: Record<string, number> = Object.create(null);
  for (const part of text.split(",")) {
    const match = /^(.+):(-?\d{1,6}(?:\.\d{1,6})?)$/.exec(part);
    if (match === null) return null;
    // A comma inside a name is escaped twice, so that it does not separate two concepts.
    result[match[1]!.replaceAll("%2C", ",")] = Number(match[2]);
  }
  return result;
}

function formatStrengths(strengths: Strengths): string {
  return Object.entries(strengths)
    .map(([name, value]) => `${name.replaceAll(",", "%2C")}:${value}`)
    .join(",");
}

function parseOne(name: string, text: string, into: Address): boolean {
  if ((NUMBERS as readonly string[]).includes(name)) {
    const value = parseNumber(name, text);
    if (value === null) return false;
    into[name as (typeof NUMBERS)[number]] = value;
    return true;
  }
  if ((STRENGTHS as readonly string[]).includes(name)) {
    const value = parseStrengths(text);
    if (value === null) return false;
    into[name as (typeof STRENGTHS)[number]] = value;
    return true;
  }
  switch (name) {
    case "p":
    case "given":
    case "case":
      into[name] = text;
      return true;
    case "at": {
      const span = parseSpan(text);
      if (span !== null) into.at = span;
      return span !== null;
    }
    case "pin": {
      const spans = text.split(",").map(parseSpan);
      if (spans.includes(null) || spans.length > 8) return false;
      into.pin = spans as Span[];
      return true;
    }
    case "panel":
      if (!(PANELS as readonly string[]).includes(text)) return false;
      into.panel = text as Panel;
      return true;
    case "cmp": {
      const columns = text.split("|") as Column[];
      if (!columns.every((column) => COLUMNS.includes(column))) return false;
      into.cmp = columns;
      return true;
    }
    case "fp":
      if (!/^[0-9a-f]{8}$/.test(text)) return false;
      into.fp = text;
      return true;
    case "lang":
      if (text !== "en" && text !== "ko") return false;
      into.lang = text;
      return true;
    default:
      return false;
  }
}

export interface ParsedAddress {
  readonly address: Address;
  readonly problems: readonly string[]; // the parts that were not understood
  readonly packed: string | null; // a compressed prompt, for `unpack`
}

export function parseAddress(fragment: string): ParsedAddress {
  const address: Address = {};
  const problems: string[] = [];
  let packed: string | null = null;
  for (const part of fragment.replace(/^#/, "").split("&")) {
    if (part === "") continue;
    const cut = part.indexOf("=");
    const name = cut < 0 ? part : part.slice(0, cut);
    let text: string;
    try {
      text = decodeURIComponent((cut < 0 ? "" : part.slice(cut + 1)).replaceAll("+", " "));
    } catch {
      problems.push(part.slice(0, 60)); // a broken escape
      continue;
    }
    if (name === "z" && /^[A-Za-z0-9_-]+$/.test(text)) packed = text;
    else if (!parseOne(name, text, address)) problems.push(part.slice(0, 60));
  }
  return { address, problems, packed };
}

const ORDER = [
  "case",
  "p",
  "given",
  "n",
  "seed",
  "t",
  "top_p",
  "rep",
  "cfg",
  "steps",
  "amp",
  "sup",
  "clamp",
  "at",
  "step",
  "panel",
  "pin",
  "cmp",
  "fp",
  "lang",
] as const;

/** Formats an address as a fragment with "#". packed: the compressed prompt, written in place of `p`. */
export function formatAddress(address: Address, packed: string | null = null): string {
  const parts: string[] = [];
  for (const name of ORDER) {
    const value = address[name];
    if (value === undefined || (name === "p" && packed !== null)) continue;
    const text =
      name === "at"
        ? formatSpan(value as Span)
        : name === "pin"
          ? (value as Span[]).map(formatSpan).join(",")
          : name === "cmp"
            ? (value as Column[]).join("|")
            : typeof value === "object"
              ? formatStrengths(value as Strengths)
              : String(value);
    if (text !== "" || name === "p") parts.push(`${name}=${encode(text)}`);
  }
  if (packed !== null) parts.push(`z=${packed}`);
  return parts.length === 0 ? "" : `#${parts.join("&")}`;
}

// Spaces become "+", and characters that are valid in a fragment are not escaped, so that addresses are readable.
// encodeURIComponent throws for a lone surrogate, which becomes U+FFFD.
function encode(text: string): string {
  return encodeURIComponent(text.toWellFormed())
    .replaceAll("%20", "+")
    .replace(/%(2C|3A|7C|2F|28|29)/g, decodeURIComponent);
}

async function through(
  bytes: Uint8Array<ArrayBuffer>,
  stream: GenericTransformStream,
): Promise<Uint8Array<ArrayBuffer>> {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
}

/** Compresses a text with deflate and encodes it as base64url. */
export async function pack(text: string): Promise<string> {
  const bytes = await through(new TextEncoder().encode(text), new CompressionStream("deflate-raw"));
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** Decodes the result of `pack`; null if it is damaged. */
export async function unpack(packed: string): Promise<string | null> {
  try {
    const binary = atob(packed.replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(binary, (character) => character.charCodeAt(0));
    return new TextDecoder().decode(await through(bytes, new DecompressionStream("deflate-raw")));
  } catch {
    return null;
  }
}
