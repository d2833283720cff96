/**
 * Pods of one Deployment are alike but for their names and their state, and ten thousand of them are held. What they have
 * in common is held once.
 */
import type { Pod } from '../core/node/pod.ts';
import { boundedMap } from '../engine/bounded-map.ts';
import type { KubeObject } from '../engine/types.ts';

/** A few of each Deployment. Pods of those that are forgotten hold their own. */
const mostParts = 2000;
/** JSON of one part. Those of honest Deployments are a quarter of it. */
const longestPart = 4096;

const ofMetadata = new Set(['labels', 'ownerReferences']);
const ofSpec = new Set(['affinity', 'tolerations', 'nodeSelector']);
const ofContainer = new Set(['command', 'args', 'resources']);
const ofVolume = new Set(['projected']);

/** Answers a pod of equal content, some parts of which are those of an earlier pod. Nobody may write into them. */
export function alikeParts(most = mostParts): (pod: Pod & KubeObject) => Pod & KubeObject {
  const parts = boundedMap<string, unknown>(most);

  function once<T>(part: T): T {
    const text = JSON.stringify(part);
    if (text === undefined || text.length > longestPart) return part;
    const known = (parts.get(text) as T | undefined) ?? part;
    // Also where it is known: what is in use is not to be the one that was set longest ago.
    parts.set(text, known);
    return known;
  }

  /** Builds a new object: V8 takes a write into a parsed one as a reason to compile all of its readers again. */
  function withAlike<T extends object>(whole: T, alike: ReadonlySet<string>): T {
    const built: Record<string, unknown> = {};
    for (const [name, value] of Object.entries(whole)) built[name] = alike.has(name) ? once(value) : value;
    return built as T;
  }

  return (pod) => ({
    ...pod,
    metadata: withAlike(pod.metadata, ofMetadata),
    spec: {
      ...withAlike(pod.spec, ofSpec),
      containers: pod.spec.containers.map((container) => withAlike(container, ofContainer)),
      ...(pod.spec.volumes && { volumes: pod.spec.volumes.map((volume) => withAlike(volume, ofVolume)) }),
    },
  });
}
