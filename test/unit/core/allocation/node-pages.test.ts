import { describe, expect, test } from 'vitest';
import { kubeTarget } from '../../../../operator/core/allocation/kube-path.ts';
import {
  createPageSplitter,
  kubeletPath,
  type NodePage,
  nodePages,
  splitSummary,
} from '../../../../operator/core/allocation/node-pages.ts';
import { isTenantNamespace } from '../../../../operator/core/allocation/record.ts';

const mine = `gl-${'a'.repeat(20)}`;
const other = `gl-${'b'.repeat(20)}`;

function split(page: Exclude<NodePage, 'stats'>, text: string) {
  const splitter = createPageSplitter(page, isTenantNamespace);
  for (const line of text.split('\n')) splitter.line(line);
  return splitter.split;
}

describe('what leaves the provider of a page', () => {
  test.each<[string, Exclude<NodePage, 'stats'>, string, string]>([
    [
      'is of the tenant’s pods alone',
      'metrics/cadvisor',
      [
        '# HELP container_cpu_usage_seconds_total CPU',
        '# TYPE container_cpu_usage_seconds_total counter',
        'container_cpu_usage_seconds_total{cpu="total",id="/"} 9000',
        `container_cpu_usage_seconds_total{container="c",namespace="${mine}",pod="p"} 1 1700000000000`,
        `container_cpu_usage_seconds_total{container="c",namespace="${other}",pod="p"} 2`,
        'container_cpu_usage_seconds_total{container="c",namespace="kube-system",pod="p"} 3',
        'container_cpu_usage_seconds_total{container="c",pod="p"} 3',
        '# TYPE machine_cpu_cores gauge',
        'machine_cpu_cores{boot_id="b",machine_id="m"} 64',
        'cadvisor_version_info{kernelVersion="6"} 1',
      ].join('\n'),
      [
        '# HELP container_cpu_usage_seconds_total CPU',
        '# TYPE container_cpu_usage_seconds_total counter',
        `container_cpu_usage_seconds_total{container="c",namespace="${mine}",pod="p"} 1 1700000000000`,
        '',
      ].join('\n'),
    ],
    [
      'does not say where the provider keeps its control groups',
      'metrics/cadvisor',
      [
        `container_x{id="/provider-acme/kubepods/burstable/pod1/c1",namespace="${mine}"} 1`,
        `container_x{id="/system.slice/secret.service",namespace="${mine}"} 2`,
      ].join('\n'),
      `container_x{id="/kubepods/burstable/pod1/c1",namespace="${mine}"} 1\ncontainer_x{id="",namespace="${mine}"} 2\n`,
    ],
    [
      'has of the node only the time, and of its CPU what the tenant used',
      'metrics/resource',
      [
        'node_cpu_usage_seconds_total 123456 1700000000500',
        'node_memory_working_set_bytes 5e+09 1700000000500',
        `pod_cpu_usage_seconds_total{namespace="${mine}",pod="p"} 1.5 1700000000000`,
        `pod_cpu_usage_seconds_total{namespace="${mine}",pod="q"} 2 1700000000000`,
        `pod_cpu_usage_seconds_total{namespace="${other}",pod="p"} 7 1700000000000`,
        'scrape_error 0',
      ].join('\n'),
      [
        '# TYPE node_cpu_usage_seconds_total counter',
        'node_cpu_usage_seconds_total 3.5 1700000000500',
        `pod_cpu_usage_seconds_total{namespace="${mine}",pod="p"} 1.5 1700000000000`,
        `pod_cpu_usage_seconds_total{namespace="${mine}",pod="q"} 2 1700000000000`,
        '',
      ].join('\n'),
    ],
    [
      'holds of probes no more than probes',
      'metrics/probes',
      `prober_probe_total{namespace="${mine}",pod="p"} 1\nprocess_start_time_seconds 1\nup{namespace="${mine}"} 1`,
      `prober_probe_total{namespace="${mine}",pod="p"} 1\n`,
    ],
  ])('%s', (_, page, given, expected) => {
    expect(split(page, given).of(mine)).toBe(expected);
  });

  test('is nothing where the tenant has no pods', () => {
    expect(split('metrics/cadvisor', 'container_x{namespace="kube-system"} 1').of(mine)).toBe('');
    expect(split('metrics/resource', 'node_cpu_usage_seconds_total 5 1700').of(mine)).toBe(
      '# TYPE node_cpu_usage_seconds_total counter\nnode_cpu_usage_seconds_total 0 1700\n',
    );
  });

  const pod = (namespace: string, more: object = {}) => ({
    podRef: { name: 'p', namespace, uid: 'u' },
    containers: [{ name: 'c', cpu: { time: '2026-01-01T00:00:00Z', usageNanoCores: 5, secret: 1 } }],
    volume: [{ name: 'v', usedBytes: 1, pvcRef: { name: 'claim', namespace } }],
    ...more,
  });
  test('is, of a summary, the tenant’s pods, and of the node its time', () => {
    const given = {
      node: {
        nodeName: 'rack-7',
        cpu: { time: '2026-01-01T00:00:10Z', usageNanoCores: 9e9 },
        fs: { capacityBytes: 1 },
      },
      pods: [pod(mine), pod(other), pod('kube-system'), 'junk', null],
    };
    expect(JSON.parse(splitSummary(given, isTenantNamespace)!.of(mine))).toEqual({
      node: { cpu: { time: '2026-01-01T00:00:10Z' }, memory: { time: '2026-01-01T00:00:10Z' } },
      pods: [
        {
          podRef: { name: 'p', namespace: mine, uid: 'u' },
          containers: [{ name: 'c', cpu: { time: '2026-01-01T00:00:00Z', usageNanoCores: 5 } }],
          volume: [{ name: 'v', usedBytes: 1 }],
        },
      ],
    });
  });

  test.each([
    [undefined],
    [null],
    ['text'],
    [[]],
    [{}],
    [{ pods: [] }],
    [{ node: {}, pods: 7 }],
  ])('%j is no summary', (given) => {
    expect(splitSummary(given, isTenantNamespace)).toBeUndefined();
  });
});

describe('paths', () => {
  test.each(nodePages)('kube/node/%s is a page of the kubelet', (page) => {
    expect(kubeTarget(`node/${page}`)).toEqual({ kind: 'node', page, methods: ['GET'] });
    expect(kubeletPath(page)).toBe(page === 'stats' ? '/stats/summary' : `/${page}`);
  });
  test.each([
    'node/',
    'node/metrics',
    'node/stats/',
    'node/stats/x',
    'node/proxy',
    'node/metrics/resource/x',
    'node/run',
  ])('kube/%s does not exist', (path) => {
    expect(kubeTarget(path)).toBeUndefined();
  });
});
