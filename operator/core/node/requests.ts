/**
 * What a pod asks for in all, counted as the scheduler does: containers and sidecars run together, init containers one after
 * the other beside the sidecars started before them; then the overhead of the runtime class.
 * https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/#resource-sharing-within-containers
 */
import { parseQuantity } from '../quantity.ts';
import type { Container, Pod, Resources } from './pod.ts';

type Amounts = Record<string, bigint>;

/** Thousandths of each resource. Throws QuantityError for what is no quantity. */
export function podRequests(pod: Pod): Readonly<Amounts> {
  const sidecars: Amounts = {};
  const starting: Amounts = {};
  for (const init of pod.spec.initContainers ?? []) {
    const own = requestsOf(init);
    if (init.restartPolicy === 'Always') {
      add(sidecars, own);
      most(starting, sidecars);
    } else {
      const now = { ...sidecars };
      add(now, own);
      most(starting, now);
    }
  }
  const running = { ...sidecars };
  for (const container of pod.spec.containers) add(running, requestsOf(container));
  most(running, starting);
  // Resources of the whole pod, where given, stand for the sum of its containers', which is never more.
  most(running, amounts(pod.spec.resources as Resources | undefined));
  add(running, amounts({ requests: pod.spec.overhead as Resources['requests'] }));
  return running;
}

/** Whether a pod runs with the CPU and memory that were asked for. What was not asked for may be anything. */
export function hasRequests(pod: Pod, asked: Pod): boolean {
  return [...asked.spec.containers, ...(asked.spec.initContainers ?? [])].every((container) => {
    const all = [...(pod.spec?.containers ?? []), ...(pod.spec?.initContainers ?? [])];
    const given = all.find(({ name }) => name === container.name)?.resources?.requests;
    return ['cpu', 'memory'].every((resource) => {
      const quantity = container.resources?.requests?.[resource];
      return quantity === undefined || parseQuantity(given?.[resource] ?? 0) === parseQuantity(quantity);
    });
  });
}

const requestsOf = (container: Container): Amounts => amounts(container.resources);

function amounts(resources: Resources | undefined): Amounts {
  const all: Amounts = {};
  for (const [name, quantity] of Object.entries({ ...resources?.limits, ...resources?.requests }))
    all[name] = parseQuantity(quantity);
  return all;
}

function add(to: Amounts, more: Amounts): void {
  for (const [name, amount] of Object.entries(more)) to[name] = (to[name] ?? 0n) + amount;
}

function most(to: Amounts, other: Amounts): void {
  for (const [name, amount] of Object.entries(other)) if (amount > (to[name] ?? 0n)) to[name] = amount;
}
