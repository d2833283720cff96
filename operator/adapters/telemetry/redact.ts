/**
 * Keeps secrets out of what is written about the program. Two nets, since each has holes: fields are judged by their
 * names, and text by its looks, for a token may stand in an error message. A bare 32-byte hex number is let through: hashes
 * and lease ids look like private keys, so those must never be handed to a log at all.
 */

/** Whole words, so that `tokenAddress` and `publicKey` stay readable. */
const secretField =
  /^(authorization|proxy-?authorization|cookie|set-cookie|password|passphrase|secrets?|(client|api|access)?-?secret|(bearer|access|refresh|id|session|service-?account)?-?_?token|private-?_?key(-?pem|-?hex)?|(client|session|wallet|signing)-?key(-?data)?|client-key-data|key-?file-?content|mnemonic|kubeconfig|credentials?)$/i;

const patterns: readonly [RegExp, string][] = [
  [/\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*/g, '[token]'],
  [/\b(Bearer|Basic)\s+[\w.~+/=-]{6,}/gi, '$1 [redacted]'],
  [/-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(-----END [A-Z ]*PRIVATE KEY-----|$)/g, '[private key]'],
  // A signature, a signed transaction, or calldata that holds one: 65 bytes at least.
  [/\b(0x)?[0-9a-f]{130,}\b/gi, '[bytes]'],
  // `token: 0x…` with twenty bytes is a contract's address.
  [
    /\b(client-key-data|token|password|passphrase|mnemonic|private-?_?key)(["']?\s*[:=]\s*["']?)(?!0x[0-9a-f]{40}\b)[^\s"',}]{6,}/gi,
    '$1$2[redacted]',
  ],
  // Credentials in URLs: of RPC providers, above all.
  [/\b([a-z][a-z0-9+.-]*:\/\/)[^\s/@:]+:[^\s/@]+@/gi, '$1[redacted]@'],
];

const deepest = 8;
const longestText = 8192;
const mostEntries = 200;

export function redactText(text: string): string {
  let result = text.length > longestText ? `${text.slice(0, longestText)}…` : text;
  for (const [pattern, replacement] of patterns) result = result.replace(pattern, replacement);
  return result;
}

/** A copy that may be written down: without secrets, bounded, without cycles, and with what JSON cannot say made text. */
export function redact(value: unknown, depth = 0, seen: ReadonlySet<object> = new Set()): unknown {
  if (typeof value === 'string') return redactText(value);
  if (typeof value === 'bigint') return value.toString();
  if (typeof value === 'function' || typeof value === 'symbol') return undefined;
  if (typeof value !== 'object' || value === null) return value;
  if (value instanceof Date) return Number.isNaN(value.getTime()) ? 'no date' : value.toISOString();
  if (Buffer.isBuffer(value) || ArrayBuffer.isView(value)) return `[${value.byteLength} bytes]`;
  if (seen.has(value)) return '[again]';
  if (depth >= deepest) return '[deeper]';
  const inside = new Set(seen).add(value);
  if (value instanceof Error) return redactError(value, depth, inside);
  if (Array.isArray(value)) return value.slice(0, mostEntries).map((entry) => redact(entry, depth + 1, inside));
  const result: Record<string, unknown> = {};
  for (const [name, entry] of Object.entries(value).slice(0, mostEntries)) {
    result[name] = secretField.test(name) && entry !== undefined ? '[redacted]' : redact(entry, depth + 1, inside);
  }
  return result;
}

/** What an error says, and its own fields: `code`, `reason`. Fields that hold requests and sockets are cut by the depth. */
function redactError(error: Error, depth: number, seen: ReadonlySet<object>): Record<string, unknown> {
  const { name, message, stack, cause, ...own } = error as Error & Record<string, unknown>;
  return {
    type: error.name,
    message: redactText(error.message),
    ...(redact(own, deepest - 2, seen) as object),
    stack: error.stack === undefined ? undefined : redactText(error.stack),
    cause: error.cause === undefined ? undefined : redact(error.cause, depth + 1, seen),
  };
}
