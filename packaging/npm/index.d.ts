/** Why a process is not protected. Thrown only with `strict`. */
export class ProtectionError extends Error {}

export interface ProtectOptions {
  /** The Opik server. By default the one that the SDK would use. */
  upstream?: string;
  /** The file in which the agent stores. */
  db?: string;
  /** The agent ends after this time without clients and waiting messages, such as `10m` (the default); null keeps it. */
  idleExit?: string | null;
  /** Look after the agent, and start another one if it is gone. True by default. */
  watch?: boolean;
  /** How often, in milliseconds. */
  watchIntervalMs?: number;
  /** Throw a `ProtectionError` if the agent can't be started, instead of a message on stderr. */
  strict?: boolean;
}

export interface Status {
  protected: boolean;
  /** Why it is not. */
  reason?: string;
  /** The agent's address, which the SDK sends to. */
  url?: string;
  /** The address of its status page. */
  page?: string;
  /** The Opik server that it delivers to. */
  server?: string;
  db?: string;
  pid?: number;
  /** The agent's connection to the server: `available`, `unavailable` or `unknown`. */
  connection?: string;
  /** Messages that wait for the server. */
  waiting?: number;
  /** Messages that the server refused. */
  rejected?: number;
}

export interface FlushResult {
  /** Whether everything is on the server. */
  delivered: boolean;
  /** Messages that wait still; null if that is unknown. */
  remaining: number | null;
  rejected: number;
  reason: string | null;
}

/** A client of the Opik SDK. */
export interface FlushableClient {
  flush(): Promise<unknown>;
}

/** Finds or starts the agent, waits until it is ready, and leads clients that are made from now on to it. May be called again. */
export function protect(options?: ProtectOptions): Status;

/** Leads clients that are made from now on to the server again. The agent goes on delivering. */
export function unprotect(): void;

export function status(): Promise<Status>;

/** Flushes these clients, and waits until everything that the agent has for its server is delivered. */
export function flush(seconds?: number, options?: { clients?: FlushableClient[] }): Promise<FlushResult>;
