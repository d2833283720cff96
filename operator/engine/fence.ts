/**
 * Writes that only a leader may make. A process that was stopped, and goes on after another one took its place, still has
 * work in hand that it decided on before: each write asks anew whether it leads, by its own clock and without a request.
 *
 * What it cannot hold back is a write that was sent already. Those are refused by their resourceVersion, where one went with
 * them.
 */
import { UnknownOutcomeError } from './errors.ts';
import type { Cluster } from './types.ts';

export function fenced(cluster: Cluster, mayWrite: () => boolean): Cluster {
  /** The same method, which rejects instead of sending once we may not. */
  const guard =
    <A extends unknown[], R>(what: string, send: (...args: A) => Promise<R>) =>
    (...args: A): Promise<R> =>
      mayWrite()
        ? send(...args)
        : Promise.reject(new UnknownOutcomeError(`${what}: not sent, as we lead no more`, { neverSent: true }));
  return {
    ...cluster,
    create: guard('create', cluster.create) as Cluster['create'],
    replace: guard('replace', cluster.replace) as Cluster['replace'],
    apply: guard('apply', cluster.apply) as Cluster['apply'],
    patch: guard('patch', cluster.patch) as Cluster['patch'],
    delete: guard('delete', cluster.delete),
    createSubresource: guard('createSubresource', cluster.createSubresource) as Cluster['createSubresource'],
  };
}
