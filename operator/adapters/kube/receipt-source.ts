/** Receipts to read: from the operator's Secrets in a cluster, or from files. Each with the JSON as it was found. */
import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { type Receipt, receipt as schema } from '../../api/receipt.ts';
import type { Fault } from '../../core/receipt/verify.ts';
import { type Cluster, type KubeObject, resources } from '../../engine/types.ts';

export interface FoundReceipt {
  /** File, or Secret: where a reader would look for it. */
  readonly from: string;
  /** As parsed; sealed byte for byte. */
  readonly raw: object;
  /** Absent when it has not the form of one; then `faults` say where. */
  readonly receipt?: Receipt;
  readonly faults: readonly Fault[];
}

/** Not there, not readable, not JSON: nothing can be said of a receipt. */
export class UnreadableSource extends Error {
  override readonly name = 'UnreadableSource';
}

/** More than an export of 10,000 receipts has. */
const maxFileBytes = 64 * 1024 * 1024;

/** A file with one receipt or a list of them, a folder of such files (*.json; what is no receipt is passed over), or - for standard input. */
export async function receiptsInFile(path: string, stdin: () => Promise<string>): Promise<FoundReceipt[]> {
  if (path === '-') return found('standard input', parse('standard input', await stdin()));
  const about = await stat(path).catch((error: NodeJS.ErrnoException) => {
    throw new UnreadableSource(`${path} cannot be read (${error.code}): name a receipt's file, or a folder of them`);
  });
  if (!about.isDirectory()) return found(path, parse(path, await read(path, about.size)));
  const files = (await readdir(path)).filter((file) => file.endsWith('.json')).sort();
  const all: FoundReceipt[] = [];
  for (const file of files) {
    const at = join(path, file);
    const { size } = await stat(at);
    all.push(...found(at, parse(at, await read(at, size))).filter(({ raw }) => looksLikeReceipt(raw)));
  }
  if (all.length === 0) throw new UnreadableSource(`${path} holds no receipts: no *.json in it is one`);
  return all;
}

async function read(path: string, bytes: number): Promise<string> {
  if (bytes > maxFileBytes)
    throw new UnreadableSource(
      `${path} has ${bytes} bytes, more than the ${maxFileBytes} that are read at once: split it`,
    );
  return readFile(path, 'utf8');
}

function parse(from: string, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new UnreadableSource(`${from} is not JSON: ${(error as Error).message.slice(0, 120)}`);
  }
}

const looksLikeReceipt = (raw: object) =>
  String((raw as { version?: unknown }).version).startsWith('gpulease.dev/receipt/');

function found(from: string, value: unknown): FoundReceipt[] {
  if (!Array.isArray(value)) return [shaped(from, value)];
  return value.map((one, index) => shaped(`${from}[${index}]`, one));
}

/** Of the operator's namespace; `selector` from `receiptSelector`. */
export async function receiptsInCluster(
  cluster: Cluster,
  namespace: string,
  selector: string,
  secret: { readonly type: string; readonly field: string },
  signal?: AbortSignal,
): Promise<FoundReceipt[]> {
  const { items } = await cluster.list<KubeObject & { type?: string; data?: Record<string, string> }>(
    resources.secrets,
    { namespace, labelSelector: selector },
    signal,
  );
  return items
    .filter(({ type }) => type === secret.type)
    .map(({ metadata, data }) => {
      const from = `Secret ${namespace}/${metadata.name}`;
      const encoded = data?.[secret.field];
      if (encoded === undefined) throw new UnreadableSource(`${from} has no ${secret.field}: it was damaged`);
      return shaped(from, parse(from, Buffer.from(encoded, 'base64').toString('utf8')));
    });
}

function shaped(from: string, raw: unknown): FoundReceipt {
  const result = schema.safeParse(raw);
  const object = raw !== null && typeof raw === 'object' ? raw : {};
  if (result.success) return { from, raw: object, receipt: result.data, faults: [] };
  const faults = result.error.issues.slice(0, 16).map((issue): Fault => {
    const field = issue.path.join('.') || 'receipt';
    const given = issue.path.reduce<unknown>(
      (value, key) => (value as Record<PropertyKey, unknown> | undefined)?.[key as PropertyKey],
      raw,
    );
    return {
      fault: 'Malformed',
      field,
      given: given === undefined ? 'nothing' : JSON.stringify(given).slice(0, 80),
      expected: issue.message,
      message: 'a field is missing, or has another form than a receipt has',
    };
  });
  return { from, raw: object, faults };
}
