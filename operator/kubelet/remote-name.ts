/** What a pod is called at its provider. Asked for at every event of it, and a hash each: the last ones are remembered. */
import { remotePodName } from '../core/node/names.ts';
import type { Pod } from '../core/node/pod.ts';
import { boundedMap } from '../engine/bounded-map.ts';

/** By name and UID. */
const known = boundedMap<string, string>(20_000);

export function remoteNameOf({ metadata: { name, uid = '' } }: Pod): string {
  const key = `${name}/${uid}`;
  const before = known.get(key);
  if (before !== undefined) return before;
  const remoteName = remotePodName(name, uid);
  known.set(key, remoteName);
  return remoteName;
}
