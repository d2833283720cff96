/** What a scenario of the chain is: something is broken, and then every effect has happened exactly once and no money is missing. */
import type { ChainLab } from './lab.ts';

/** Cases of the specification's table of failures; each has at least one scenario. */
export type Case =
  | 'operator crash'
  | 'RPC outage'
  | 'wrong chain, lying RPC'
  | 'reorg'
  | 'nonce gap, stuck'
  | 'no gas'
  | 'revert'
  | 'provider vanishes'
  | 'consumer vanishes'
  | 'both vanish'
  | 'checkers'
  | 'token'
  | 'clock'
  | 'oversigned voucher'
  | 'mass restart'
  | 'dust, spam'
  | 'two chains'
  | 'invoice'
  | 'load';

export interface ChainScenario {
  readonly name: string;
  readonly of: Case;
  /** What was broken, for the table. */
  readonly broke: string;
  /** Why it is not run: what it needs is not built. */
  readonly missing?: string;
  /** How blocks come makes no difference to it, or it sends faster than a block a second takes. */
  readonly automineOnly?: true;
  /** Says what was seen; throws when that was wrong. */
  run(lab: ChainLab): Promise<string>;
}

export class Wrong extends Error {}

export function expect(holds: boolean, otherwise: string): asserts holds {
  if (!holds) throw new Wrong(otherwise);
}
