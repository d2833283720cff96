/** The pods that the provider runs for us, by what may not change: which pod, which container, how often restarted. */
import { annotations, labels, managedBy } from '../../operator/api/labels.ts';
import { resources } from '../../operator/engine/types.ts';
import type { Lab, Pod } from './lab.ts';

export async function podsAtProvider(lab: Lab) {
  const { items } = await lab.sandbox.providerCluster.list<Pod>(resources.pods, {
    labelSelector: `${labels.managedBy}=${managedBy}`,
  });
  return items
    .map((pod) => ({
      of: pod.metadata.annotations?.[annotations.podUid],
      uid: pod.metadata.uid,
      containers: pod.status?.containerStatuses?.map((one) => [one.containerID, one.restartCount]),
    }))
    .sort((a, b) => (a.uid! < b.uid! ? -1 : 1));
}
