import { describe, expect, test } from 'vitest';
import { readPage } from '../../../../operator/core/exposition.ts';
import { noUsage, type UsageMemory } from '../../../../operator/core/node/node-usage.ts';
import { ownPage } from '../../../../operator/core/node/own-page.ts';
import type { PageOptions } from '../../../../operator/core/node/page.ts';
import type { Pod } from '../../../../operator/core/node/pod.ts';
import { resourcePage } from '../../../../operator/core/node/resource-page.ts';
import { cadvisorPage, probesPage } from '../../../../operator/core/node/series-page.ts';
import { summaryPage } from '../../../../operator/core/node/summary-page.ts';

const now = new Date('2026-06-01T12:00:00Z');
const at = now.getTime() - 2000;

const pod = (namespace: string, name: string, uid: string, ...containers: string[]): Pod => ({
  metadata: { namespace, name, uid },
  spec: { containers: containers.map((one) => ({ name: one })), initContainers: [{ name: 'setup' }] },
});
const here: Record<string, Pod> = {
  'web-1': pod('team', 'web', 'u-web', 'main', 'side'),
  'job-2': pod('lab', 'job', 'u-job', 'main'),
};
const options: PageOptions = {
  nodeName: 'gpu-train',
  served: { resources: { cpu: '2', memory: '1Gi', ephemeralStorage: '10Gi' } },
  podOf: (name) => (Object.hasOwn(here, name) ? here[name] : undefined),
  isHere: (uid) => Object.values(here).some((one) => one.metadata.uid === uid),
  now,
};

const remote = (name: string, more = '', ns = 'gl-1') => `namespace="${ns}",pod="${name}"${more}`;
const samples = (text: string): Record<string, string> => {
  const found: Record<string, string> = {};
  readPage(text, ({ name, labels, value, timestampMs }) => {
    found[`${name}{${labels.map(([k, v]) => `${k}=${v}`).join(',')}}`] =
      `${value}${timestampMs ? ` @${timestampMs}` : ''}`;
  });
  return found;
};

describe('/metrics/resource', () => {
  const page = (lines: string[], memory: UsageMemory = noUsage, more: Partial<PageOptions> = {}) =>
    resourcePage(lines.join('\n'), memory, { ...options, ...more });

  test('tells the consumer’s names, namespace before pod before container', () => {
    const { text } = page([
      `container_cpu_usage_seconds_total{container="main",${remote('web-1')}} 1.5 ${at}`,
      `container_memory_working_set_bytes{container="main",${remote('web-1')}} 1e+06 ${at}`,
      `container_start_time_seconds{container="main",${remote('web-1')}} 1.7e+09`,
      `pod_cpu_usage_seconds_total{${remote('web-1')}} 2 ${at}`,
      `pod_memory_working_set_bytes{${remote('web-1')}} 2e+06 ${at}`,
    ]);
    expect(text).toContain(
      `container_cpu_usage_seconds_total{namespace="team",pod="web",container="main"} 1.5 ${at}\n`,
    );
    expect(text).toContain('# TYPE container_cpu_usage_seconds_total counter\n');
    expect(samples(text)).toEqual({
      'node_cpu_usage_seconds_total{}': `2 @${at}`,
      'node_memory_working_set_bytes{}': `2000000 @${at}`,
      'container_cpu_usage_seconds_total{namespace=team,pod=web,container=main}': `1.5 @${at}`,
      'container_memory_working_set_bytes{namespace=team,pod=web,container=main}': `1e+06 @${at}`,
      'container_start_time_seconds{namespace=team,pod=web,container=main}': '1.7e+09',
      'pod_cpu_usage_seconds_total{namespace=team,pod=web}': `2 @${at}`,
      'pod_memory_working_set_bytes{namespace=team,pod=web}': `2e+06 @${at}`,
      'resource_scrape_error{}': '0',
      'scrape_error{}': '0',
    });
  });

  test.each<[string, string[], Record<string, string>]>([
    ['a pod that the consumer does not have', [`pod_cpu_usage_seconds_total{${remote('stranger')}} 5 ${at}`], {}],
    [
      'a pod whose name is a trick',
      [
        `pod_cpu_usage_seconds_total{${remote('__proto__')}} 5`,
        `pod_cpu_usage_seconds_total{${remote('constructor')}} 5`,
      ],
      {},
    ],
    [
      'a container that the consumer’s pod does not have',
      [`container_cpu_usage_seconds_total{container="istio",${remote('web-1')}} 5 ${at}`],
      {},
    ],
    ['a family that no kubelet has', [`evil_total{${remote('web-1')}} 5`], {}],
    [
      'a figure that cannot be',
      [
        `pod_cpu_usage_seconds_total{${remote('web-1')}} -5 ${at}`,
        `pod_memory_working_set_bytes{${remote('web-1')}} NaN`,
        `pod_swap_usage_bytes{${remote('web-1')}} +Inf`,
      ],
      {},
    ],
    ['a line that is broken', [`pod_cpu_usage_seconds_total{${remote('web-1')} 5 ${at}`], {}],
    [
      'all of that, and keeps what is well',
      [
        `container_cpu_usage_seconds_total{container="istio",${remote('web-1')}} 5 ${at}`,
        'container_cpu_usage_seconds_total{container="main"',
        `container_cpu_usage_seconds_total{container="setup",${remote('job-2')}} 3 ${at}`,
      ],
      { 'container_cpu_usage_seconds_total{namespace=lab,pod=job,container=setup}': `3 @${at}` },
    ],
  ])('leaves out %s', (_, lines, expected) => {
    const found = samples(page(lines).text);
    for (const own of [
      'node_cpu_usage_seconds_total{}',
      'node_memory_working_set_bytes{}',
      'resource_scrape_error{}',
      'scrape_error{}',
    ])
      delete found[own];
    expect(found).toEqual(expected);
  });

  test.each<[string, string[], string, string]>([
    ['is measured though nothing runs', [], '1e-9', '1'],
    [
      'has the time of the node where nothing runs',
      [`node_cpu_usage_seconds_total 7 ${at}`],
      `1e-9 @${at}`,
      `1 @${at}`,
    ],
    [
      'is the sum of its pods, and nothing of what the provider says of its own',
      [
        `node_cpu_usage_seconds_total 999999 ${at + 500}`,
        'node_memory_working_set_bytes 9e+11',
        `pod_cpu_usage_seconds_total{${remote('web-1')}} 2 ${at}`,
        `pod_cpu_usage_seconds_total{${remote('job-2')}} 3 ${at - 1000}`,
        `pod_cpu_usage_seconds_total{${remote('stranger')}} 90 ${at}`,
        `pod_memory_working_set_bytes{${remote('web-1')}} 100 ${at}`,
        `pod_memory_working_set_bytes{${remote('job-2')}} 11 ${at}`,
      ],
      `5 @${at}`,
      `111 @${at}`,
    ],
    [
      'is that of the containers where there are no figures of pods',
      [
        `container_cpu_usage_seconds_total{container="main",${remote('web-1')}} 2 ${at}`,
        `container_cpu_usage_seconds_total{container="side",${remote('web-1')}} 1 ${at}`,
        `container_memory_working_set_bytes{container="main",${remote('web-1')}} 5 ${at}`,
        `container_memory_working_set_bytes{container="side",${remote('web-1')}} 6 ${at}`,
      ],
      `3 @${at}`,
      `11 @${at}`,
    ],
    [
      'has no more memory than was leased',
      [`pod_memory_working_set_bytes{${remote('web-1')}} 9e+15 ${at}`],
      '1e-9',
      '1073741824',
    ],
  ])('the node %s', (_, lines, cpu, memory) => {
    const found = samples(page(lines).text);
    expect(found['node_cpu_usage_seconds_total{}']).toBe(cpu);
    expect(found['node_memory_working_set_bytes{}']).toBe(memory);
  });

  test('a pod that ends takes nothing of the node’s counter along', () => {
    const first = page([`pod_cpu_usage_seconds_total{${remote('web-1')}} 5 ${at - 10_000}`]);
    const { text } = page([`pod_cpu_usage_seconds_total{${remote('job-2')}} 1 ${at}`], first.memory, {
      isHere: (uid) => uid === 'u-job',
    });
    expect(samples(text)['node_cpu_usage_seconds_total{}']).toBe(`6 @${at}`);
  });

  test('a clock that is far off tells no time', () => {
    const { text } = page([`pod_cpu_usage_seconds_total{${remote('web-1')}} 5 ${at - 3_600_000}`]);
    expect(samples(text)['pod_cpu_usage_seconds_total{namespace=team,pod=web}']).toBe('5');
    expect(samples(text)['node_cpu_usage_seconds_total{}']).toBe(`5 @${now.getTime()}`);
  });

  test('says that the provider could not measure', () => {
    expect(samples(page(['resource_scrape_error 1']).text)).toMatchObject({
      'resource_scrape_error{}': '1',
      'scrape_error{}': '1',
    });
  });
});

describe('/metrics/cadvisor', () => {
  const leased = { 'machine_cpu_cores{}': '2', 'machine_memory_bytes{}': '1073741824' };
  test.each<[string, string[], Record<string, string>]>([
    ['tells of the machine what was leased', ['machine_cpu_cores 64'], leased],
    [
      'keeps the other labels behind the consumer’s names',
      [`container_fs_reads_total{container="main",device="/dev/sda",id="/kubepods/x",${remote('web-1')}} 4 ${at}`],
      {
        ...leased,
        'container_fs_reads_total{namespace=team,pod=web,container=main,device=/dev/sda,id=/kubepods/x}': `4 @${at}`,
      },
    ],
    [
      'keeps what is of the pod and of no container',
      [
        `container_network_receive_bytes_total{interface="eth0",${remote('web-1')}} 4`,
        `container_memory_cache{container="",${remote('web-1')}} 5`,
      ],
      {
        ...leased,
        'container_network_receive_bytes_total{namespace=team,pod=web,interface=eth0}': '4',
        'container_memory_cache{namespace=team,pod=web,container=}': '5',
      },
    ],
    [
      'leaves out what it cannot place',
      [
        `container_x{container="other",${remote('web-1')}} 1`,
        `container_x{${remote('stranger')}} 1`,
        'container_x{id="/"} 1',
        `kubelet_x{${remote('web-1')}} 1`,
        `container_X{${remote('web-1')}} 1`,
        `container_x{image="${'i'.repeat(2000)}",${remote('web-1')}} 1`,
      ],
      leased,
    ],
  ])('%s', (_, lines, expected) => {
    expect(samples(cadvisorPage(lines.join('\n'), options))).toEqual(expected);
  });

  test('a name that ends a line or a label stays one name', () => {
    const text = cadvisorPage(String.raw`container_x{image="a\"} 1\nevil 2",${remote('web-1')}} 1`, options);
    expect(text.split('\n').filter((line) => !line.startsWith('#'))).toEqual([
      'machine_cpu_cores 2',
      'machine_memory_bytes 1073741824',
      String.raw`container_x{namespace="team",pod="web",image="a\"} 1\nevil 2"} 1`,
      '',
    ]);
  });
});

test('/metrics/probes tells the consumer’s UIDs', () => {
  const text = probesPage(
    `# TYPE prober_probe_total counter\nprober_probe_total{container="main",${remote('web-1')},pod_uid="remote",probe_type="Liveness",result="successful"} 3`,
    options,
  );
  expect(text).toBe(
    '# TYPE prober_probe_total counter\nprober_probe_total{namespace="team",pod="web",container="main",probe_type="Liveness",result="successful",pod_uid="u-web"} 3\n',
  );
});

describe('/stats/summary', () => {
  const time = new Date(at).toISOString();
  const stats = (name: string, more: object = {}) => ({
    podRef: { name, namespace: 'gl-1', uid: 'remote' },
    startTime: time,
    containers: [
      {
        name: 'main',
        startTime: time,
        cpu: { time, usageNanoCores: 5, usageCoreNanoSeconds: 2e9 },
        rootfs: { usedBytes: 7 },
      },
      { name: 'istio', cpu: { time, usageNanoCores: 900 } },
    ],
    cpu: { time, usageNanoCores: 6, usageCoreNanoSeconds: 3e9 },
    memory: { time, workingSetBytes: 100, usageBytes: 150, rssBytes: 50 },
    'ephemeral-storage': { time, usedBytes: 10 },
    ...more,
  });
  const page = (pods: unknown, more: object = {}) =>
    summaryPage({ node: { cpu: { time } }, pods }, noUsage, {
      ...options,
      startTime: new Date('2026-06-01T00:00:00Z'),
      onlyCpuAndMemory: false,
      ...more,
    })?.page as unknown as { node: Record<string, never>; pods: { podRef: { name: string } }[] };

  test('tells pods and containers of the consumer, and sums them up', () => {
    expect(page([stats('web-1'), stats('job-2'), stats('stranger')])).toEqual({
      node: {
        nodeName: 'gpu-train',
        startTime: '2026-06-01T00:00:00.000Z',
        cpu: { time, usageNanoCores: 12, usageCoreNanoSeconds: 6e9 },
        memory: { time, availableBytes: 1073741824 - 200, usageBytes: 300, workingSetBytes: 200, rssBytes: 100 },
        fs: { time, capacityBytes: 10737418240, usedBytes: 20, availableBytes: 10737418220 },
      },
      pods: [
        {
          ...stats('web-1'),
          podRef: { name: 'web', namespace: 'team', uid: 'u-web' },
          containers: [stats('web-1').containers[0]],
        },
        expect.objectContaining({ podRef: { name: 'job', namespace: 'lab', uid: 'u-job' } }),
      ],
    });
  });

  test('of CPU and memory only, when asked so', () => {
    const { node, pods } = page([stats('web-1')], { onlyCpuAndMemory: true });
    expect(Object.keys(node)).toEqual(['nodeName', 'startTime', 'cpu', 'memory']);
    expect(Object.keys(pods[0]!)).toEqual(['podRef', 'startTime', 'cpu', 'memory', 'containers']);
    expect(JSON.stringify(pods)).not.toContain('rootfs');
  });

  test.each<[string, unknown[]]>([
    ['is no object', ['junk', 7, null, []]],
    ['names nobody', [{ containers: [] }, { podRef: { name: 'web-1' } }, { podRef: 'web-1' }]],
    ['has a name that is a trick', [stats('__proto__'), stats('toString')]],
    ['is there twice', [stats('web-1', { cpu: { usageNanoCores: 1e12 } })]],
  ])('one pod that %s breaks nothing', (_, bad) => {
    const told = page([stats('web-1'), ...bad, stats('job-2')]);
    expect(told.pods.map((one) => one.podRef.name)).toEqual(['web', 'job']);
    expect(told.node.cpu).toMatchObject({ usageNanoCores: 12 });
  });

  test.each<[string, object]>([
    ['negative', { memory: { workingSetBytes: -1 } }],
    ['no whole number', { memory: { workingSetBytes: 1.5 } }],
    ['larger than Go can read', { memory: { workingSetBytes: 1e30 } }],
    ['text', { memory: { workingSetBytes: '100' } }],
    ['an object', { memory: { workingSetBytes: {} } }],
    ['a list', { memory: [] }],
    ['a time that is none', { memory: { time: 'yesterday' } }],
  ])('a figure that is %s is left out', (_, more) => {
    const [told] = page([stats('web-1', more)]).pods;
    expect((told as { memory?: object })?.memory ?? {}).toEqual({});
  });

  test('the node has used no more than was leased', () => {
    const much = stats('web-1', {
      cpu: { time, usageNanoCores: 1e15 },
      memory: { time, workingSetBytes: 1e15 },
      'ephemeral-storage': { usedBytes: 1e15 },
    });
    expect(page([much]).node).toMatchObject({
      cpu: { usageNanoCores: 2e9 },
      memory: { workingSetBytes: 1073741824, availableBytes: 0 },
      fs: { usedBytes: 10737418240, availableBytes: 0 },
    });
  });

  test('sums of what cannot be stay numbers that Go can read', () => {
    const huge = { usageBytes: 2 ** 63, rssBytes: 2 ** 63, workingSetBytes: 2 ** 63 };
    const told = page(
      ['web-1', 'job-2'].map((name) =>
        stats(name, { cpu: { time, usageNanoCores: 2 ** 63, usageCoreNanoSeconds: 2 ** 63 }, memory: huge }),
      ),
      { served: { resources: { cpu: 'many', memory: 'much', ephemeralStorage: '' } } },
    );
    expect(JSON.stringify(told)).not.toMatch(/e\+/);
    for (const [number] of JSON.stringify(told).matchAll(/\d{16,}/g)) expect(BigInt(number)).toBeLessThan(2n ** 64n);
  });

  test('nothing runs: noughts, at the time of the provider’s node', () => {
    expect(page([]).node.cpu).toEqual({ time, usageNanoCores: 0, usageCoreNanoSeconds: 0 });
    expect(page(null)).toMatchObject({ pods: [] });
  });

  test.each([
    ['2099-01-01T00:00:00Z'],
    ['1999-01-01T00:00:00Z'],
    ['never'],
  ])('a clock that says %s does not stop the node’s counter', (wrong) => {
    const of = (seconds: number, when: string, memory: UsageMemory) =>
      summaryPage(
        { node: {}, pods: [stats('web-1', { cpu: { time: when, usageCoreNanoSeconds: seconds * 1e9 } })] },
        memory,
        { ...options, now: new Date(now.getTime() + seconds * 1000), startTime: now, onlyCpuAndMemory: false },
      )!;
    const first = of(1, wrong, noUsage);
    const second = of(2, new Date(now.getTime() + 1500).toISOString(), first.memory);
    const third = of(3, wrong, second.memory);
    expect((third.page as { node: object }).node).toMatchObject({ cpu: { usageCoreNanoSeconds: 3e9 } });
  });

  test('what is leased may be no quantity', () => {
    const served = { resources: { cpu: 'many', memory: '', ephemeralStorage: '-' } };
    expect(page([stats('web-1')], { served }).node.memory).toMatchObject({ workingSetBytes: 100 });
  });

  test.each([[undefined], ['text'], [[]], [{ pods: [] }]])('%j is no summary', (given) => {
    expect(summaryPage(given, noUsage, { ...options, startTime: now, onlyCpuAndMemory: false })).toBeUndefined();
  });
});

test('/metrics tells which node it is and what it runs', () => {
  const running: Pod = {
    ...here['web-1']!,
    status: {
      containerStatuses: [
        { name: 'main', ready: true, restartCount: 0, image: '', imageID: '', state: { running: {} } },
        { name: 'side', ready: false, restartCount: 0, image: '', imageID: '', state: { waiting: {} } },
      ],
      initContainerStatuses: [
        { name: 'setup', ready: true, restartCount: 0, image: '', imageID: '', state: { terminated: { exitCode: 0 } } },
      ],
    },
  };
  expect(samples(ownPage([running, here['job-2']!], { nodeName: 'n', kubeletVersion: 'v1.36.3+gpulease.1' }))).toEqual({
    'kubernetes_build_info{git_version=v1.36.3+gpulease.1,major=1,minor=36}': '1',
    'kubelet_node_name{node=n}': '1',
    'kubelet_running_pods{}': '1',
    'kubelet_running_containers{container_state=created}': '1',
    'kubelet_running_containers{container_state=exited}': '1',
    'kubelet_running_containers{container_state=running}': '1',
  });
});
