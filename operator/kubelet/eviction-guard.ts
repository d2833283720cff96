/** Keeps the policy of `core/node/eviction.ts` in the consumer's cluster, and says whether it is there. */
import { evictionGuard } from '../core/node/eviction.ts';
import { type Clock, systemClock } from '../engine/clock.ts';
import { isApiError } from '../engine/errors.ts';
import { type Cluster, type KubeObject, type Log, resources } from '../engine/types.ts';
import { pause } from '../wire/timing.ts';

export interface EvictionGuard {
  /** Whether pods of our nodes are safe from eviction as they are. Undefined until it is known. */
  readonly holds: boolean | undefined;
  /** Called when that changes. */
  onChange(handler: () => void): void;
  /** Makes the policy, and again when somebody took it away, until the signal fires. */
  run(signal: AbortSignal): Promise<void>;
}

export interface EvictionGuardOptions {
  readonly cluster: Cluster;
  readonly log: Log;
  readonly clock?: Clock;
  readonly intervalSeconds?: number;
}

/** Whether all that is wanted is there; what the API server filled in besides does not matter. */
function says(stored: unknown, wanted: unknown): boolean {
  if (Array.isArray(wanted))
    return Array.isArray(stored) && stored.length === wanted.length && wanted.every((one, i) => says(stored[i], one));
  if (wanted === null || typeof wanted !== 'object') return stored === wanted;
  if (stored === null || typeof stored !== 'object') return false;
  return Object.entries(wanted).every(([key, one]) => says((stored as Record<string, unknown>)[key], one));
}

const fieldManager = 'gpulease-operator';
const againSeconds = 10;
/** No such kind, no right to it, or not as this server knows it: facts that last until somebody changes the cluster. */
const refusals = ['NotFound', 'Forbidden', 'MethodNotAllowed', 'Invalid', 'BadRequest'];

export function createEvictionGuard({
  cluster,
  log,
  clock = systemClock,
  intervalSeconds = 300,
}: EvictionGuardOptions): EvictionGuard {
  let holds: boolean | undefined;
  let told: string | undefined;
  const handlers = new Set<() => void>();

  function found(now: boolean): void {
    if (now === holds) return;
    holds = now;
    for (const handler of handlers) handler();
  }

  /** Brought by whoever installed us: then we need no right to write policies, which is one to change anything. */
  async function isThere(signal: AbortSignal): Promise<boolean> {
    const { policy, binding } = evictionGuard();
    const { name } = policy.metadata;
    const [one, other] = await Promise.all([
      cluster.get<KubeObject & { spec?: object }>(resources.mutatingPolicies, { name }, signal),
      cluster.get<KubeObject & { spec?: object }>(resources.mutatingPolicyBindings, { name }, signal),
    ]);
    return says(one?.spec, policy.spec) && says(other?.spec, binding.spec);
  }

  async function ensure(signal: AbortSignal): Promise<number> {
    const { policy, binding } = evictionGuard();
    try {
      // Applied whether it is there or not: an API server that finds nothing to change writes nothing.
      await cluster.apply<KubeObject>(resources.mutatingPolicies, policy as KubeObject, { fieldManager }, signal);
      await cluster.apply<KubeObject>(
        resources.mutatingPolicyBindings,
        binding as KubeObject,
        { fieldManager },
        signal,
      );
      found(true);
      told = undefined;
      return intervalSeconds;
    } catch (error) {
      if (signal.aborted) return 0;
      // Silence says nothing about a policy that was there, and a server that is busy does not either.
      if (!isApiError(error, ...refusals)) return againSeconds;
      if (isApiError(error, 'Forbidden') && (await isThere(signal).catch(() => false))) {
        found(true);
        told = undefined;
        return intervalSeconds;
      }
      found(false);
      if (told !== error.message)
        log.info(
          { reason: error.message },
          'the admission policy that spares pods from eviction cannot be made here: each pod is changed instead',
        );
      told = error.message;
      return intervalSeconds;
    }
  }

  return {
    get holds() {
      return holds;
    },
    onChange: (handler) => void handlers.add(handler),
    async run(signal) {
      while (!signal.aborted) await pause(clock, (await ensure(signal)) * 1000, signal);
    },
  };
}
