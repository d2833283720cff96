import { describe, expect, it, test } from 'vitest';
import { librariesIn, packagesIn, staticWithoutTc } from '../../../operator/sandbox/conformance/debian.ts';
import { type Ingredients, imagesOf } from '../../../operator/sandbox/conformance/images.ts';
import { also, choose, needsHostAccess, never, nodeConformance } from '../../../operator/sandbox/conformance/specs.ts';
import {
  exitCodeOf,
  type GinkgoSpec,
  leaksOf,
  linesOf,
  type Outcome,
  outcomeOf,
  progressOf,
} from '../../../operator/sandbox/conformance/summary.ts';

const spec = (name: string, state: string, more: Partial<GinkgoSpec> = {}): GinkgoSpec => ({
  ContainerHierarchyTexts: ['[sig-node]', 'Pods'],
  LeafNodeText: name,
  LeafNodeType: 'It',
  LeafNodeLocation: { FileName: '/go/k8s.io/kubernetes@v1.36.3/test/e2e/common/node/pods.go', LineNumber: 1 },
  State: state,
  RunTime: 1_250_000_000,
  ...more,
});
const hostSpec = (state: string) =>
  spec('should function for node-pod communication: udp [LinuxOnly] [NodeConformance] [Conformance]', state, {
    ContainerHierarchyTexts: ['[sig-network]', 'Networking', 'Granular Checks: Pods'],
  });
const outcome = (...specs: GinkgoSpec[]): Outcome => outcomeOf([{ SpecReports: specs }], () => true, 'baseline');

describe('a report of the suite', () => {
  test.each<[string, GinkgoSpec, keyof Outcome, object]>([
    ['that passed', spec('a', 'passed'), 'passed', { name: '[sig-node] Pods a', seconds: 1.3 }],
    [
      'that failed, with its reason and place',
      spec('a', 'failed', {
        Failure: { Message: 'timed out\n', Location: { FileName: '/x/test/e2e/framework/pod.go', LineNumber: 7 } },
      }),
      'failed',
      { message: 'timed out', at: 'framework/pod.go:7', file: 'common/node/pods.go' },
    ],
    [
      'whose pod was refused, with the reason first',
      spec('a', 'failed', {
        Failure: {
          Message:
            "Told to stop trying\n  status:\n    conditions: []\n    message: 'spec.hostPID: no'\n    phase: Failed\n    reason: HostAccessRefused",
        },
      }),
      'failed',
      { message: expect.stringMatching(/^HostAccessRefused: spec\.hostPID: no\. Told to stop trying/) },
    ],
    ['that ran out of time', spec('a', 'timedout'), 'failed', { message: 'timedout' }],
    ['that was never run', spec('a', 'skipped'), 'failed', { message: 'not run' }],
    [
      'that says that it does not apply here',
      spec('a', 'skipped', { Failure: { Message: 'needs Windows' } }),
      'skipped',
      { message: 'needs Windows' },
    ],
    ['that is left out by its author', spec('a', 'pending'), 'skipped', {}],
  ])('counts one %s', (_, one, kind, expected) => {
    const { suiteErrors: _errors, ...kinds } = outcome(one);
    for (const [name, specs] of Object.entries(kinds)) expect(specs).toHaveLength(name === kind ? 1 : 0);
    expect(outcome(one)[kind]).toMatchObject([expected]);
  });

  it('counts none that was not to be run', () => {
    const suites = [{ SpecReports: [spec('a', 'skipped'), spec('b', 'passed')] }, { SpecReports: null }];
    const seen = outcomeOf(suites, (name) => name.endsWith(' b'), 'baseline');
    expect(seen).toMatchObject({ passed: [{ name: '[sig-node] Pods b' }], failed: [], skipped: [] });
  });

  it('tells of failures around the specs', () => {
    const setup = spec('', 'failed', { LeafNodeType: 'BeforeSuite', Failure: { Message: 'no nodes' } });
    expect(outcome(setup).suiteErrors).toEqual(['BeforeSuite: no nodes']);
    expect(exitCodeOf(outcome(setup, spec('a', 'passed')), [])).toBe(1);
  });
});

describe('access to the host', () => {
  test.each<[string, GinkgoSpec, 'baseline' | 'trusted', 0 | 1, number]>([
    ['refused under baseline is as it should be', hostSpec('failed'), 'baseline', 0, 0],
    ['given under baseline is an alarm', hostSpec('passed'), 'baseline', 1, 1],
    ['refused to a trusted consumer is a failure', hostSpec('failed'), 'trusted', 1, 0],
    ['given to a trusted consumer is as it should be', hostSpec('passed'), 'trusted', 0, 0],
  ])('%s', (_, one, profile, code, leaks) => {
    const seen = outcomeOf([{ SpecReports: [one] }], () => true, profile);
    expect(leaksOf(seen, profile)).toHaveLength(leaks);
    expect(exitCodeOf(seen, leaksOf(seen, profile))).toBe(code);
  });

  test.each([
    [
      '[sig-network] Networking Granular Checks: Pods should function for node-pod communication: http [LinuxOnly]',
      true,
    ],
    ['[sig-node] KubeletManagedEtcHosts should test kubelet managed /etc/hosts file [NodeConformance]', true],
    ['[sig-network] Networking Granular Checks: Pods should function for intra-pod communication: http', false],
    ['[sig-node] Kubelet when scheduling an agnhost Pod with hostAliases should write entries to /etc/hosts', false],
  ])('is needed by %s: %s', (name, needed) => {
    expect(needsHostAccess(name)).toBe(needed);
  });
});

test('nothing measured is no success', () => {
  expect(exitCodeOf(outcome(), [])).toBe(2);
});

test('a summary has a line a file, every failure with its reason, and says where pods ran', () => {
  const failure = { Message: 'no\n  endpoint', Location: { FileName: 'x/test/e2e/a.go', LineNumber: 3 } };
  const lines = linesOf(
    outcome(spec('a', 'passed'), spec('b', 'failed', { Failure: failure }), hostSpec('failed')),
    { leased: 3, other: 1 },
    'leased',
  );
  expect(lines).toContain('common/node/pods.go       1       2        0');
  expect(lines).toContain('  [sig-node] Pods b');
  expect(lines).toContain('      no endpoint (a.go:3)');
  expect(lines).toContain('      refused, as it should be: it needs access to the host (--profile trusted)');
  expect(lines).toContain('pods by node: leased 3, other 1');
  expect(lines.at(-1)).toMatch(/^WARNING: some pods ran elsewhere/);
});

test.each([
  ['nothing yet', 'Running in parallel across 8 processes\n', { done: 0, failed: 0 }],
  [
    'some that passed, and one that failed',
    'Will run 141 of 7579 specs\n\n•••\n------\n• [FAILED] [3.1 seconds]\n[sig-node] …\n------\n••\n',
    { total: 141, done: 6, failed: 1 },
  ],
])('progress is read from what the suite prints: %s', (_, log, expected) => {
  expect(progressOf(log)).toEqual(expected);
});

describe('the choice of specs', () => {
  const names = {
    node: '[sig-node] Pods should get a host IP [NodeConformance] [Conformance]',
    slow: '[sig-node] Pods should cap back-off [Slow] [NodeConformance]',
    logs: '[sig-cli] Kubectl logs logs should be able to retrieve and filter logs [Conformance]',
    serial: '[sig-apps] Job should be alone [Serial] [Conformance]',
    cronJob: '[sig-apps] CronJob should support API [Conformance]',
  };
  const picked = (focus: string | undefined, withAlso: boolean) => {
    const { focus: wanted, skip } = choose(focus, withAlso);
    return Object.entries(names)
      .filter(([, name]) => wanted.some((one) => new RegExp(one).test(name)) && !(skip && new RegExp(skip).test(name)))
      .map(([key]) => key);
  };

  test.each<[string, string | undefined, boolean, string[]]>([
    ['is what a node is measured by', undefined, false, ['node']],
    ['adds what users do with pods, but nothing that needs a cluster to itself', undefined, true, ['node', 'logs']],
    ['is taken as given otherwise', 'Serial|Slow', true, ['slow', 'serial']],
  ])('%s', (_, focus, withAlso, expected) => {
    expect(picked(focus, withAlso)).toEqual(expected);
  });

  it('is written so that Go and JavaScript read it alike', () => {
    // What RE2 does not know: look-around, back-references.
    for (const pattern of [nodeConformance, never, ...also]) expect(pattern).not.toMatch(/\(\?|\\\d/);
  });
});

describe('the images of the suite', () => {
  const from: Ingredients = {
    busybox: Buffer.from('busybox'),
    applets: ['sh', 'nc', '['],
    agnhost: Buffer.from('agnhost'),
    nonewprivs: Buffer.from('nnp'),
    pause: Buffer.from('pause'),
    porter: { certificate: Buffer.from('crt'), key: Buffer.from('key') },
    tools: new Map([['usr/bin/nc', Buffer.from('nc')]]),
  };
  const images = Object.fromEntries(imagesOf(from).map((image) => [image.name.split('/').at(-1)!, image]));

  it('have the names that Kubernetes v1.36.3 asks for', () => {
    expect(Object.keys(images)).toEqual([
      'agnhost:2.63.0',
      'busybox:1.37.0-1',
      'nonroot:1.5',
      'nonewprivs:1.4',
      'pause:3.10.2',
    ]);
  });

  it('share what they have in common', () => {
    const base = images['busybox:1.37.0-1']!.layers[0];
    for (const name of ['agnhost:2.63.0', 'nonroot:1.5', 'nonewprivs:1.4']) expect(images[name]!.layers[0]).toBe(base);
    expect(images['nonroot:1.5']!.run).toMatchObject({ User: '1234' });
  });
});

describe('what is taken from Debian', () => {
  it('is every real package in apt’s answer, once', () => {
    expect(packagesIn('curl\n  Depends: libc6\n  Depends: <awk>\n    mawk\nlibc6\n<awk>\nlibc6\nlibstdc++6\n')).toEqual(
      ['curl', 'libc6', 'libstdc++6'],
    );
  });

  it('is every library that the loader lists, the loader itself where programs look for it', () => {
    const listed = `\tlinux-vdso.so.1 (0x00007f)
\tlibz.so.1 => /r/lib/libz.so.1 (0x00007f)
\t/lib64/ld-linux-x86-64.so.2 => /r/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 (0x00007f)
`;
    expect(librariesIn(listed)).toEqual([
      { at: 'usr/lib/libz.so.1', file: '/r/lib/libz.so.1' },
      { at: 'lib64/ld-linux-x86-64.so.2', file: '/r/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2' },
    ]);
    expect(() => librariesIn('\tlibq.so.1 => not found\n')).toThrow('libq.so.1');
  });

  it('is a static busybox without tc', () => {
    expect(staticWithoutTc('A=y\n# CONFIG_STATIC is not set\nCONFIG_TC=y\nCONFIG_TCPSVD=y\n')).toBe(
      'A=y\nCONFIG_STATIC=y\n# CONFIG_TC is not set\nCONFIG_TCPSVD=y\n',
    );
  });
});
