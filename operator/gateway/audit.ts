/**
 * The audit log: one line for each call of a known consumer that may have changed something, or opened a stream. It says who,
 * from where, what, and what came of it; never what was sent. Each field is bounded, and no character of it steers a terminal.
 */
import type { Hex32 } from '../api/messages.ts';
import type { From } from './addresses.ts';
import type { Callers } from './callers.ts';
import type { GatewayLog } from './service.ts';

export type Audit = (from: From & { method?: string; url?: string }, status: number, seconds: number) => void;

const longest = 200;
const reads: ReadonlySet<string> = new Set(['GET', 'HEAD', 'OPTIONS']);

/** Without its query: the command of an exec, which may name a secret, is part of it. */
export function pathInWords(url: string, leaseId: Hex32): string {
  const path = url.split('?', 1)[0]!.replace(`/v1/leases/${leaseId}/`, '');
  const shown = path.replace(/[^\x21-\x7e]/g, '?');
  return shown.length > longest ? `${shown.slice(0, longest - 1)}…` : shown;
}

export function createAudit(log: GatewayLog, callers: Callers): Audit {
  return (from, status, seconds) => {
    const leaseId = callers.leaseOf(from);
    const method = from.method ?? '';
    // An upgrade is a stream into a pod, whatever its method.
    if (leaseId === undefined || (reads.has(method) && status !== 101)) return;
    log.info(
      {
        audit: method,
        path: pathInWords(from.url ?? '', leaseId),
        leaseId,
        wallet: callers.walletOf(leaseId),
        address: callers.addressOf(from),
        status,
        ms: Math.round(seconds * 1000),
      },
      'audit',
    );
  };
}
