/**
 * Knows secrets, and finds them in text where none may stand. Two nets, since each has holes:
 *
 *   by value   whatever a run made or was given: keys, tokens, HMAC keys, values of Secrets; as they are and in base64
 *   by looks   what nobody told of: signatures, signed transactions, tokens, private keys in PEM
 *
 * Signatures and signed transactions may stand where they are kept: in Secrets (records, outboxes, receipts), in the answer to
 * who asked for one, and on the chain. Nowhere else: a voucher or an Access that somebody reads in a log is money, or a way in.
 */

export interface Finding {
  /** File and line, or object. */
  readonly where: string;
  /** Which secret, never its value. */
  readonly what: string;
}

/** Told with the places; the secret itself would be written once more. */
export class Leak extends Error {
  override readonly name = 'Leak';
  constructor(findings: readonly Finding[]) {
    const lines = findings.slice(0, 20).map(({ where, what }) => `  ${what}: ${where}`);
    super(`${findings.length} secrets stand where none may:\n${lines.join('\n')}`);
  }
}

/** Shorter values are words like any others. */
const shortest = 12;
const most = 20_000;

const looks: readonly (readonly [what: string, pattern: RegExp])[] = [
  ['a signature', /(?<![0-9a-fA-F])[0-9a-fA-F]{130}(?![0-9a-fA-F])/],
  ['a signed transaction', /0x0[1-4]f[89a-b][0-9a-fA-F]{180}/],
  ['a token of the gateway', /eyJsIjoi[\w-]{20,}\.[\w-]{20,}/],
  ['a token of an API server', /eyJ[\w-]{8,}\.eyJ[\w-]{16,}/],
  ['a bearer token', /\bBearer\s+(?!\[)[A-Za-z0-9._~+/-]{16,}/i],
  ['a private key in PEM', /-----BEGIN [A-Z ]*PRIVATE KEY-----/],
];

export interface Secrets {
  /** What it is called in a finding. Values that are too short to be told from words are left out. */
  add(what: string, value: string | Uint8Array): void;
  readonly size: number;
  search(where: string, text: string): Finding[];
}

export function createSecrets(): Secrets {
  /** Text to look for, to what it is. */
  const values = new Map<string, string>();
  const keep = (what: string, text: string) => {
    if (text.length >= shortest && values.size < most && !values.has(text)) values.set(text, what);
  };
  return {
    add(what, value) {
      const bytes = typeof value === 'string' ? Buffer.from(value, 'utf8') : Buffer.from(value);
      const text = bytes.toString('utf8').trim();
      // Vouchers come every few seconds, for hours: they are known by their looks.
      if (bytes.length < shortest || /^0x(?:[0-9a-f]{130}|0[1-4]f[89a-b][0-9a-f]{180,})$/i.test(text)) return;
      // A text that is shown in parts, or among others, is a secret as well: by its lines. What is no text is known by its code.
      const isText = !text.includes('\uFFFD');
      if (isText) for (const line of text.split('\n')) keep(what, line.replace(/^0x(?=[0-9a-f]{40})/i, '').trim());
      else keep(what, bytes.toString('hex'));
      keep(what, bytes.toString('base64').replace(/=+$/, ''));
      keep(what, bytes.toString('base64url'));
    },
    get size() {
      return values.size;
    },
    search(where, text) {
      const at = (index: number) => `${where}, line ${text.slice(0, index).split('\n').length}`;
      const found: Finding[] = [];
      for (const [what, pattern] of looks) {
        const match = pattern.exec(text);
        if (match) found.push({ where: at(match.index), what });
      }
      for (const [value, what] of values) {
        const index = text.indexOf(value);
        if (index >= 0) found.push({ where: at(index), what });
      }
      return found;
    },
  };
}

/**
 * The secret parts of a Secret object: all of it, but of ours, which hold JSON that is public for the most part, only the
 * fields that are secret; and of certificates only the key.
 */
export function secretsIn(secret: {
  readonly type?: string;
  readonly metadata: { readonly name: string; readonly namespace?: string };
  readonly data?: Readonly<Record<string, string>>;
}): { readonly what: string; readonly value: Uint8Array | string }[] {
  const found: { what: string; value: Uint8Array | string }[] = [];
  const { namespace, name } = secret.metadata;
  for (const [field, encoded] of Object.entries(secret.data ?? {})) {
    const what = `${field} of Secret ${namespace}/${name}`;
    const bytes = Buffer.from(encoded, 'base64');
    const json = jsonOf(bytes.toString('utf8'));
    if (json !== undefined) found.push(...secretFields(json).map((value) => ({ what, value })));
    else if (field === 'tls.key') found.push({ what, value: keyMaterial(bytes.toString('utf8')) });
    // What is beside a key or a token is public: certificates, the namespace.
    else if (!/\.crt$/.test(field) && !(field === 'namespace' && secret.type?.includes('token')))
      found.push({ what, value: bytes });
  }
  return found;
}

/** Without the lines around it, which every key has. */
const keyMaterial = (pem: string) =>
  pem
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('-----'))
    .join('\n');

function jsonOf(text: string): unknown {
  if (!/^\s*[{[]/.test(text)) return undefined;
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

const secretName = /^(.*signature|raw|.*private.*key.*|.+key|.*secret.*|.*password.*|.*token)$/i;

function secretFields(value: unknown, depth = 0): string[] {
  if (typeof value !== 'object' || value === null || depth > 12) return [];
  return Object.entries(value).flatMap(([name, inside]) =>
    typeof inside === 'string'
      ? // An address is public, also where its field is called `token`.
        secretName.test(name) && !/^0x[0-9a-f]{40}$/i.test(inside)
        ? [inside]
        : []
      : secretFields(inside, depth + 1),
  );
}

/** Keys and tokens of a kubeconfig. */
export const secretsOfKubeconfig = (text: string): string[] =>
  [...text.matchAll(/\b(?:client-key-data|token|password):\s*"?([^\s"]+)/g)].map((match) => match[1]!);
