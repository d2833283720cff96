/** What V8's profiles say: where time was spent and what memory was allocated for, by function and by file. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { table } from './figures.ts';

interface Frame {
  readonly functionName: string;
  readonly url: string;
  readonly lineNumber: number;
}

interface CpuProfile {
  readonly nodes: readonly { readonly id: number; readonly callFrame: Frame }[];
  readonly samples: readonly number[];
  readonly timeDeltas: readonly number[];
}

interface HeapNode {
  readonly callFrame: Frame;
  readonly selfSize: number;
  readonly children: readonly HeapNode[];
}

export interface Share {
  readonly what: string;
  readonly amount: number;
}

/** `core/node/sha256.ts` of ours, `fastify/lib/reply.js` of a package, `node:net` of Node.js. */
export function fileOf(url: string): string {
  if (url === '') return '(V8)';
  const path = url.replace(/^file:\/\//, '');
  const packaged = path.lastIndexOf('/node_modules/');
  if (packaged >= 0) return path.slice(packaged + '/node_modules/'.length);
  const ours = path.lastIndexOf('/operator/');
  return ours >= 0 ? path.slice(ours + '/operator/'.length) : path;
}

const nameOf = ({ functionName, url, lineNumber }: Frame): string =>
  url === '' ? functionName : `${functionName || '(anonymous)'}  ${fileOf(url)}:${lineNumber + 1}`;

const idle: ReadonlySet<string> = new Set(['(idle)', '(program)', '(root)']);

/** Seconds by function, the greatest first. Waiting is left out. */
export function selfTime(profile: CpuProfile, by: (frame: Frame) => string = nameOf): Share[] {
  const frames = new Map(profile.nodes.map((node) => [node.id, node.callFrame]));
  const sums = new Map<string, number>();
  profile.samples.forEach((id, i) => {
    const frame = frames.get(id);
    if (!frame || idle.has(frame.functionName)) return;
    const name = by(frame);
    sums.set(name, (sums.get(name) ?? 0) + Math.max(0, profile.timeDeltas[i] ?? 0) / 1e6);
  });
  return sorted(sums);
}

/** Bytes that were allocated and still live at the end, by function. */
export function allocated(head: HeapNode): Share[] {
  const sums = new Map<string, number>();
  const visit = (node: HeapNode) => {
    if (node.selfSize > 0) sums.set(nameOf(node.callFrame), (sums.get(nameOf(node.callFrame)) ?? 0) + node.selfSize);
    node.children.forEach(visit);
  };
  visit(head);
  return sorted(sums);
}

const sorted = (sums: ReadonlyMap<string, number>): Share[] =>
  [...sums].map(([what, amount]) => ({ what, amount })).toSorted((a, b) => b.amount - a.amount);

function filesIn(folder: string, ending: string): string[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder)
    .filter((name) => name.endsWith(ending))
    .map((name) => join(folder, name));
}

const readJson = <T>(file: string): T => JSON.parse(readFileSync(file, 'utf8')) as T;

/** Told after the programs have ended, as they write their profiles then. */
export function tellProfiles(folder: string, rows = 25): string {
  const parts: string[] = [];
  for (const program of ['operator', 'gateway']) {
    for (const file of filesIn(join(folder, program), '.cpuprofile')) {
      const profile = readJson<CpuProfile>(file);
      const functions = selfTime(profile);
      const files = selfTime(profile, (frame) => fileOf(frame.url));
      const all = functions.reduce((sum, one) => sum + one.amount, 0);
      const show = (shares: Share[], most: number) =>
        table(
          [`${program}, ${all.toFixed(1)} s busy`, 'self s', '%'],
          shares.slice(0, most).map(({ what, amount }) => [what, amount.toFixed(2), ((amount / all) * 100).toFixed(1)]),
        );
      parts.push(show(functions, rows), show(files, Math.ceil(rows / 2)));
    }
    for (const file of filesIn(join(folder, program), '.heapprofile')) {
      const shares = allocated(readJson<{ head: HeapNode }>(file).head);
      parts.push(
        table(
          [`${program}, heap at its end`, 'KiB'],
          shares.slice(0, Math.ceil(rows / 2)).map(({ what, amount }) => [what, (amount / 1024).toFixed(0)]),
        ),
      );
    }
  }
  return parts.length > 0 ? parts.join('\n\n') : `no profile was written to ${folder}`;
}
