/** /metrics: what a virtual node tells of itself. */
import { createPageWriter, type Label } from '../exposition.ts';
import type { Pod } from './pod.ts';

/** Of what a kubelet tells of itself, that which a virtual node has: which node it is, and how many pods it runs. */
export function ownPage(
  pods: readonly Pod[],
  { nodeName, kubeletVersion }: { readonly nodeName: string; readonly kubeletVersion: string },
): string {
  const page = createPageWriter(1000);
  const gauge = (name: string, help: string, value: number, ...labels: Label[]) =>
    page.add({ name, labels, value: String(value) }, { name, help, type: 'gauge' });
  const [, major = '', minor = ''] = /^v(\d+)\.(\d+)/.exec(kubeletVersion) ?? [];
  gauge(
    'kubernetes_build_info',
    'Release whose kubelet API this speaks',
    1,
    ['git_version', kubeletVersion],
    ['major', major],
    ['minor', minor],
  );
  gauge('kubelet_node_name', 'Name of the node', 1, ['node', nodeName]);
  const states = { created: 0, exited: 0, running: 0 };
  let running = 0;
  for (const { status } of pods) {
    const all = [status?.containerStatuses, status?.initContainerStatuses, status?.ephemeralContainerStatuses]
      .flatMap((list) => list ?? [])
      .map(({ state }) => (state?.running ? 'running' : state?.terminated ? 'exited' : 'created'));
    for (const state of all) states[state] += 1;
    if (all.includes('running')) running += 1;
  }
  gauge('kubelet_running_pods', 'Pods of which a container runs', running);
  for (const [state, count] of Object.entries(states))
    gauge('kubelet_running_containers', 'Containers by state', count, ['container_state', state]);
  return page.text();
}
