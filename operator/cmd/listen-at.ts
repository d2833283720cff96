/** HOST:PORT of a flag. An empty host is every address. */
import { UsageError } from './options.ts';

export function listenAt(flag: string, given: string): { host: string; port: number } {
  const match = /^(?:\[([0-9a-fA-F:]+)\]|([^:]*)):(\d{1,5})$/.exec(given);
  const port = Number(match?.[3]);
  if (!match || port > 65_535) throw new UsageError(`--${flag} must be HOST:PORT; given: ${given}`);
  return { host: match[1] ?? (match[2] || '0.0.0.0'), port };
}
