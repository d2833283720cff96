/** What a scenario is: something is broken, mended (or not), and then all must be as wanted and nothing lost. */

import type { Hex32 } from '../../operator/api/messages.ts';
import { escrowClient } from '../../operator/sandbox/scenario.ts';
import type { Lab, LabLease } from './lab.ts';

export interface Scenario {
  readonly name: string;
  /** What was broken, for the table. */
  readonly broke: string;
  /** Cannot be had everywhere: `real` needs a kubelet, `git` the code of an earlier commit. */
  readonly needs?: 'real' | 'git';
  /** Runs only when asked for: it takes many minutes. */
  readonly long?: boolean;
  /** Runs only when all are asked for, or this one is. */
  readonly onlyWithAll?: boolean;
  /** Seconds that may be missing from the base lease's bill afterwards, because nobody could vouch for them. Default: 6. */
  readonly lost?: number;
  run(lab: Lab, clock: Stopwatch): Promise<void>;
}

export interface Stopwatch {
  /** From now on it is to get well: the seconds of the table begin. A later call begins anew. */
  mended(): void;
  /** Waits until all is as wanted, by `look` or else as for every scenario; what follows is not counted. Otherwise the runner looks. */
  wanted(look?: () => Promise<void>): Promise<void>;
  /** Shown beside the verdict. */
  note(text: string): void;
}

export class Wrong extends Error {}

export function expect(holds: boolean, otherwise: string): asserts holds {
  if (!holds) throw new Wrong(otherwise);
}

/**
 * The bill of a lease that has ended: what was served, never more than its node was Ready. `lost`: seconds that may be missing
 * because nobody could vouch for them.
 */
export async function fairBill(lab: Lab, lease: LabLease, lost = 3): Promise<number> {
  const leaseId = lease.witness.lease?.status?.settlement?.leaseId;
  const client = await escrowClient(lab.sandbox);
  const escrow = leaseId && (await client.lease(leaseId as Hex32));
  if (!escrow) throw new Wrong(`lease ${lease.name} left no escrow`);
  const ready = lease.witness.readySeconds();
  const { servedSeconds } = escrow;
  expect(escrow.closed, `the escrow of ${lease.name} is not closed`);
  expect(servedSeconds <= ready + 2, `${servedSeconds} s were billed, the node was Ready for ${ready.toFixed(1)} s`);
  expect(
    servedSeconds >= ready - lost,
    `only ${servedSeconds} s were billed, the node was Ready for ${ready.toFixed(1)} s`,
  );
  return servedSeconds;
}

/** Used for names of leases: each run of a scenario has its own. */
let runs = 0;
export const fresh = (prefix: string): string => {
  runs += 1;
  return `${prefix}-${runs}`;
};
