// Types of the explanation document (docs/design/trace-format.md) and of the server's answers.

/** A head of concepts, or the features of an autoencoder: "feature:3" of block 3, or "feature:bottleneck". */
export type Kind = Head | `feature:${string}`;
export type Head = "known" | "discovered";
export type Span = readonly [start: number, end: number]; // canvas positions, the end exclusive
export type Shares = Readonly<Record<Head | "epsilon", number>>;
export type Run = readonly [start: number, end: number, text: string, complete: boolean];

export interface Commit {
  readonly step: number;
  readonly positions: readonly number[];
  readonly token_ids: readonly number[];
  readonly target_logits: readonly number[];
}

export interface Inputs {
  readonly positions: readonly number[];
  readonly attributions: readonly number[];
  readonly rest: number;
  readonly value: number;
  readonly baseline: number;
  readonly completeness_error: number;
  readonly nodes?: number;
  readonly converged?: boolean; // of one token or one chunk of a document
  readonly unconverged?: number; // of a selection, as the server answers
  readonly tokens?: number;
}

export interface TokenConcept {
  readonly id: number;
  readonly activation: number;
  readonly contribution: number;
  readonly log_probability?: number;
}

export interface DocumentToken {
  readonly position: number;
  readonly step: number;
  readonly token_id: number;
  readonly logit: number;
  readonly reference_logit?: number | null;
  readonly known: readonly TokenConcept[] | null;
  readonly discovered: readonly TokenConcept[] | null;
  readonly other_known: number | null;
  readonly other_discovered: number | null;
  readonly epsilon: number | null;
  readonly share_error: number | null;
  readonly net_shares: Shares | null;
  readonly absolute_shares: Shares | null;
  readonly inputs: Inputs | null;
  readonly features?: readonly { readonly feature: number; readonly contribution: number }[];
  readonly other_features?: number;
  readonly feature_bias?: number;
  readonly feature_residual?: number;
}

/** The features whose contributions are parts of logits. */
export interface FeatureParts {
  readonly reference: string;
  readonly largest_error: number;
  readonly head?: Kind; // of the bottleneck in documents of before
}

/** The activations of an autoencoder's strongest features at each position. */
export interface Activations {
  readonly head: Kind;
  readonly name: string;
  readonly tokens: readonly (readonly (readonly [feature: number, value: number])[])[];
}

export interface ChunkConcept {
  readonly id: number;
  readonly share: number;
}

export interface DocumentChunk {
  readonly start: number;
  readonly end: number;
  readonly text: string;
  readonly known: readonly ChunkConcept[] | null;
  readonly discovered: readonly ChunkConcept[] | null;
  readonly net_shares: Shares | null;
  readonly absolute_shares: Shares | null;
  readonly inputs: Inputs | null;
  readonly evidence: Evidence | null;
}

export interface Hit {
  readonly score: string;
  readonly value: number;
  readonly document: number;
  readonly name: string;
  readonly source: string;
  readonly sha256: string;
  readonly offset: number;
  readonly start: number;
  readonly end: number;
  readonly text: string;
  readonly query: Span;
  readonly occurrences: number | null;
  readonly license?: string;
}

export interface Evidence {
  readonly thresholds: Readonly<Record<string, number>>;
  readonly nothing_close: readonly string[];
  /** The best value in the corpus, also below the threshold; absent in older documents. */
  readonly best?: Readonly<Record<string, number>>;
  readonly hits: readonly Hit[];
}

export type Candidate = readonly [token: number, probability: number, raw: number];
export type OpenPlace = readonly [
  position: number,
  candidates: readonly Candidate[],
  entropy: number,
  confidence: number,
  temperature: number | null,
];

export interface ConsideredStep {
  readonly step: number;
  readonly open: readonly OpenPlace[];
  readonly order: readonly number[];
  readonly agrees: boolean | null;
}

export interface Considered {
  readonly steps: readonly ConsideredStep[];
  readonly agreeing: number;
  readonly compared: number;
  readonly pieces?: Readonly<Record<string, string>>;
}

export interface Cost {
  readonly nats_per_token: number;
  readonly maskings: number;
  readonly repeated_3_grams: number;
  readonly tokens: number;
}

export interface Card {
  readonly id?: number;
  readonly name?: string;
  readonly description?: string;
  readonly group?: string;
  readonly promotes?: readonly string[];
  readonly examples?: readonly string[]; // beginnings of texts in which it is strongest
  readonly is_named?: boolean;
  readonly amplify?: number | null;
  readonly suppress?: number | null;
  readonly head?: Kind;
  readonly steer?: string | null; // its name in a request; null where it cannot be steered by
  readonly density?: number | null; // of a feature: the share of the tokens at which it is active
  readonly largest?: number | null; // of a feature: its largest activation
}

export interface Trace {
  readonly model: { readonly name: string; readonly fingerprint: string };
  readonly prompt_text: string;
  readonly text: string;
  readonly seed: number | null;
  readonly steering: readonly string[];
  readonly mask_id: number;
  readonly prompt: readonly number[];
  readonly tokens: readonly number[];
  readonly commits: readonly Commit[];
}

export interface Document {
  readonly format?: string;
  readonly version?: number;
  readonly strict?: boolean;
  readonly trace: Trace;
  readonly pieces: readonly string[];
  readonly characters?: readonly Run[];
  readonly errors?: {
    readonly largest_share_error: number | null;
    readonly largest_completeness_error: number | null;
    readonly targets: number;
    readonly unconverged: number | null;
  };
  readonly concepts?: Readonly<Partial<Record<Kind, Readonly<Record<string, string>>>>> | null;
  readonly cards?: Readonly<Partial<Record<Kind, Readonly<Record<string, Card>>>>>;
  readonly tokens: readonly DocumentToken[];
  readonly chunks: readonly DocumentChunk[];
  readonly features?: FeatureParts;
  readonly activations?: readonly Activations[];
  readonly considered?: Considered | null;
  readonly cost?: Cost | null;
}

export type Translated = Readonly<{ en: string; ko?: string }>;

export interface CaseEntry {
  readonly name: string;
  readonly category: string;
  readonly title: Translated;
  readonly text: Translated;
  readonly request?: TextRequest;
  readonly state?: string;
}

export interface Variant {
  readonly name: string;
  readonly title: Translated;
  readonly request?: TextRequest;
  readonly document: Document;
}

export interface Case extends CaseEntry {
  readonly document: Document;
  readonly compare?: readonly Variant[];
}

// The body of a request for a text.
export interface TextRequest {
  prompt: string;
  continuation?: string;
  max_tokens?: number;
  seed?: number;
  temperature?: number;
  top_p?: number;
  repetition_penalty?: number;
  cfg_scale?: number;
  steps?: number;
  steering?: Steering;
  random_direction?: boolean;
}

export interface Steering {
  amplify?: Record<string, number | null>;
  suppress?: Record<string, number | null>;
  clamp?: Record<string, number>;
}

export interface Model {
  readonly name: string;
  readonly fingerprint: string;
  readonly context: number;
  readonly block: number;
  readonly concepts: Readonly<Record<Head, number>>;
  readonly features: readonly unknown[];
  readonly corpus: unknown;
  readonly index: { readonly scores: readonly string[] } | null;
  readonly can_index?: boolean;
  readonly limits: { readonly tokens: number; readonly prompt: number };
  readonly epoch: string;
}

export type WritingState = "queued" | "running" | "done" | "stopped" | "failed";

export interface TextState {
  readonly text: string;
  readonly state: WritingState;
  readonly place: number | null;
  readonly written: number;
  readonly of: number;
  readonly seconds: number;
  readonly error: string | null;
}
