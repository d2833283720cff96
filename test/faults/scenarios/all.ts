import type { Scenario } from '../scenario.ts';
import { chain } from './chain.ts';
import { kills } from './kills.ts';
import { network } from './network.ts';
import { outages, requotes } from './outages.ts';
import { people } from './people.ts';
import { random } from './random.ts';
import { replicas } from './replicas.ts';
import { upgrade } from './upgrade.ts';

/**
 * Left out unless all are asked for: each is told apart from one that runs by a moment or a duration only. Together they would
 * double the time.
 */
const others: ReadonlySet<string> = new Set([
  'fee-spike-opening',
  'operator-killed-quoting',
  'operator-killed-provisioning',
  'operator-killed-registering',
  'operator-killed-releasing',
  'operator-killed-settling',
  'gateway-killed-quoting',
  'gateway-killed-provisioning',
  'gateway-killed-draining',
  'gateway-killed-settling',
  'anvil-killed-settling',
  'consumer-apiserver-killed-serving',
  'provider-apiserver-killed-serving',
  'provider-apiserver-killed-draining',
  'operator-to-gateway-cut-45s',
  'operator-to-gateway-silent-15s',
  'operator-to-cluster-silent-6s-forgotten',
  'operator-to-cluster-silent-25s',
  'gateway-to-cluster-silent-20s-forgotten',
  'gateway-frozen-45s',
  'operator-rolled',
  'requote-after-quote',
  'requote-after-broadcast',
]);

/** In the order in which they run. The chain's come first: a young chain is carried over its restarts with all its past. */
export function scenarios(seed: number): readonly Scenario[] {
  const all = [
    ...chain,
    ...kills,
    ...network,
    ...replicas,
    ...requotes,
    ...outages,
    ...people,
    ...upgrade,
    random(seed),
    random(seed + 1),
  ];
  return all.map((one) =>
    others.has(one.name) || one.name === random(seed + 1).name ? { ...one, onlyWithAll: true } : one,
  );
}
