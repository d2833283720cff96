/** What `gpulease provider check` finds, one row for each thing that can be wrong. */
import { describe, expect, test } from 'vitest';
import {
  type ClusterFacts,
  checkCluster,
  type SeenDaemonSet,
  type Verdict,
  type Wanted,
} from '../../../../operator/core/allocation/cluster-check.ts';
import type { NodeObject } from '../../../../operator/core/allocation/node-view.ts';
import { gpuNode } from '../../../support/provider-side.ts';

const node = (change: Record<string, unknown> = {}) => gpuNode('gpu-1', 4, change) as unknown as NodeObject;
const labelled = (labels: Record<string, string | undefined>) => {
  const all = { ...node().metadata.labels, ...labels };
  const kept = Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined));
  return node({ metadata: { name: 'gpu-1', labels: kept } });
};
const set = (name: string, image: string, more: Partial<SeenDaemonSet> = {}): SeenDaemonSet => ({
  name,
  namespace: 'kube-system',
  images: [image],
  args: [],
  env: {},
  ...more,
});
const calico = set('calico-node', 'docker.io/calico/node:v3.31');
const plugin = set('nvidia-device-plugin', 'nvcr.io/nvidia/k8s-device-plugin:v0.18', {
  env: { DEVICE_LIST_STRATEGY: 'cdi-cri' },
});
const toolkit = set('nvidia-container-toolkit-daemonset', 'nvcr.io/nvidia/k8s/container-toolkit:v1.18', {
  env: { ACCEPT_NVIDIA_VISIBLE_DEVICES_ENVVAR_WHEN_UNPRIVILEGED: 'false' },
});
const fit: ClusterFacts = {
  version: 'v1.36.3',
  nodes: [node()],
  daemonSets: [calico, plugin, toolkit],
  hasAdmissionPolicies: true,
  podSecurity: true,
  cgroupVersions: { 'gpu-1': 2 },
  runtimeClasses: ['gvisor'],
  storageClasses: ['fast'],
  podWebhooks: [{ name: 'mesh', seesTenants: false }],
  apiServerAddresses: ['10.0.0.1'],
  nodesWithSlices: [],
};
const wanted: Wanted = { runtimeClasses: ['gvisor'], storageClass: 'fast', deniedCidrs: ['203.0.113.0/24'] };
const config = (text: string) => ({ toolkitConfig: `[nvidia-container-cli]\n${text}\n` });
const accept = 'accept-nvidia-visible-devices-envvar-when-unprivileged';

test('of a cluster that is fit, everything is fine and nothing is to be done', () => {
  for (const finding of checkCluster(fit, wanted)) {
    expect(finding, finding.check).toMatchObject({ verdict: 'ok' });
    expect(finding).not.toHaveProperty('fix');
  }
});

describe('what is wrong is said, with what to do', () => {
  test.each<[string, Partial<ClusterFacts>, check: string, Verdict, saw: RegExp, Partial<Wanted>?]>([
    ['an old Kubernetes', { version: 'v1.32.9+k3s1' }, 'kubernetes', 'refused', /1\.32/],
    ['a Kubernetes of no version', { version: 'main' }, 'kubernetes', 'unknown', /main/],
    ['no admission policies', { hasAdmissionPolicies: false }, 'admission policies', 'refused', /no Validating/],
    ['no Pod Security', { podSecurity: false }, 'pod security', 'refused', /was let into/],
    ['Pod Security that could not be tried', { podSecurity: undefined }, 'pod security', 'unknown', /could not/],
    ['no network plugin', { daemonSets: [plugin, toolkit] }, 'network policies', 'unknown', /no DaemonSet/],
    [
      'a network plugin that enforces nothing',
      { daemonSets: [set('kube-flannel-ds', 'ghcr.io/flannel-io/flannel:v0.27'), plugin, toolkit] },
      'network policies',
      'refused',
      /flannel/,
    ],
    [
      'one that could, and is told not to',
      {
        daemonSets: [
          set('aws-node', 'amazon-k8s-cni:v1', {
            images: ['aws-network-policy-agent:v1'],
            args: ['--enable-network-policy=false'],
          }),
        ],
      },
      'network policies',
      'refused',
      /enable-network-policy is false/,
    ],
    [
      'an API server on the internet',
      { apiServerAddresses: ['198.51.100.7'] },
      'public addresses',
      'warning',
      /198\.51\.100\.7/,
    ],
    [
      'a node on the internet, beside the network that is denied',
      { nodes: [node({ status: { ...node().status, addresses: [{ type: 'ExternalIP', address: '203.0.114.1' }] } })] },
      'public addresses',
      'warning',
      /203\.0\.114\.1/,
    ],
    [
      'no node on offer',
      { nodes: [labelled({ 'gpulease.dev/offered': 'false' })] },
      'offered nodes',
      'refused',
      /no node/,
    ],
    [
      'no feature discovery',
      { nodes: [labelled({ 'nvidia.com/gpu.product': undefined })] },
      'gpu labels',
      'refused',
      /gpu-1/,
    ],
    [
      'an unknown model',
      { nodes: [labelled({ 'nvidia.com/gpu.product': 'NVIDIA-B300' })] },
      'gpu models',
      'warning',
      /B300/,
    ],
    ['shared GPUs', { nodes: [labelled({ 'nvidia.com/gpu.replicas': '4' })] }, 'shared gpus', 'warning', /gpu-1/],
    ['a cordoned node', { nodes: [node({ spec: { unschedulable: true } })] }, 'withdrawn nodes', 'warning', /cordoned/],
    [
      'an old kubelet',
      { nodes: [node({ status: { ...node().status, nodeInfo: { kubeletVersion: 'v1.30.1' } } })] },
      'kubelets',
      'refused',
      /v1\.30\.1/,
    ],
    ['control groups of version 1', { cgroupVersions: { 'gpu-1': 1 } }, 'control groups', 'refused', /version 1/],
    ['control groups that nobody tells of', { cgroupVersions: {} }, 'control groups', 'unknown', /do not tell/],
    ['no device plugin', { daemonSets: [calico, toolkit] }, 'device plugin', 'unknown', /no DaemonSet/],
    [
      'devices by variable',
      { daemonSets: [calico, toolkit, set('p', 'k8s-device-plugin:v0.18')] },
      'device plugin',
      'warning',
      /NVIDIA_VISIBLE_DEVICES/,
    ],
    [
      'a toolkit that nobody can see',
      { daemonSets: [calico, plugin] },
      'container toolkit',
      'unknown',
      /cannot be seen/,
    ],
    [
      'a toolkit that takes the variable',
      { daemonSets: [calico, plugin, { ...toolkit, env: {} }] },
      'container toolkit',
      'refused',
      /not set, which means true/,
    ],
    ['a configuration that takes it', config(`${accept} = true`), 'container toolkit', 'refused', /= true/],
    ['a configuration that says nothing', config(`#${accept} = false`), 'container toolkit', 'refused', /not set/],
    ['no such runtime class', {}, 'runtime class', 'refused', /kata/, { runtimeClasses: ['kata'] }],
    ['no such storage class', {}, 'storage class', 'refused', /slow/, { storageClass: 'slow' }],
    [
      'a webhook that sees tenants',
      { podWebhooks: [{ name: 'mesh', seesTenants: true }] },
      'webhooks',
      'warning',
      /mesh/,
    ],
    ['GPUs that are handed out twice', { nodesWithSlices: ['gpu-1'] }, 'resource claims', 'refused', /gpu-1/],
  ])('%s', (_name, change, check, verdict, saw, wish = {}) => {
    const found = checkCluster({ ...fit, ...change }, { ...wanted, ...wish }).filter((one) => one.verdict !== 'ok');
    expect(found.find((one) => one.check === check)).toMatchObject({
      verdict,
      saw: expect.stringMatching(saw),
      fix: expect.stringMatching(/./),
    });
  });

  test('addresses in a network that is denied are fine', () => {
    const facts = { ...fit, apiServerAddresses: ['203.0.113.9'] };
    expect(checkCluster(facts, wanted).every(({ verdict }) => verdict === 'ok')).toBe(true);
  });

  test('a configuration that refuses the variable is enough, whatever installed it', () => {
    const facts = { ...fit, daemonSets: [calico, plugin], ...config(`${accept} = false`) };
    expect(checkCluster(facts, wanted).every(({ verdict }) => verdict === 'ok')).toBe(true);
  });
});
