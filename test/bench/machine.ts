/** The machine, in words for a plot. */
import { cpus, totalmem } from 'node:os';

export function machine(): string {
  const all = cpus();
  return `${all.length} cores, ${Math.round(totalmem() / 2 ** 30)} GiB`;
}
