import type { Scenario } from '../scenario.ts';
import { chain } from './chain.ts';
import { kills } from './kills.ts';
import { network } from './network.ts';
import { outages, requotes } from './outages.ts';
import { random } from './random.ts';
import { replicas } from './replicas.ts';
import { upgrade } from './upgrade.ts';

/** In the order in which they run. The chain's come first: a young chain is carried over its restarts with all its past. */
export const scenarios = (seed: number): readonly Scenario[] => [
  ...chain,
  ...kills,
  ...network,
  ...replicas,
  ...requotes,
  ...outages,
  ...upgrade,
  random(seed),
  random(seed + 1),
];
