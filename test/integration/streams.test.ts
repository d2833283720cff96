/**
 * Streams through a virtual node, on real parts: kubectl, two API servers, a gateway, a kubelet and containerd. By all the
 * ways in which a caller can come: WebSocket that the API server passes on to the node (the node declares that it can), WebSocket
 * that the API server translates, and SPDY.
 */
import { type ChildProcess, execFile } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Pod } from '../../operator/core/node/pod.ts';
import type { Node } from '../../operator/core/node/virtual-node.ts';
import { resources } from '../../operator/engine/types.ts';
import { TOOLS_IMAGE } from '../../operator/sandbox/clusters/images.ts';
import { freePorts } from '../../operator/sandbox/processes.ts';
import { type ChannelProtocol, type ChannelSocket, openChannels, targetOf } from '../support/channel-socket.ts';
import { eventually } from '../support/clusters.ts';
import { type LeasedNode, type LeaseLab, startLeaseLab } from '../support/leased-node.ts';

/** As long as people leave a terminal alone: ten minutes, or as much of it as a run of all tests has time for. */
const idleSeconds = process.env.GPULEASE_LONG ? 600 : 45;

const spdy = { KUBECTL_REMOTE_COMMAND_WEBSOCKETS: 'false', KUBECTL_PORT_FORWARD_WEBSOCKETS: 'false' };
/** How callers come, to which pod, and how many megabytes they bring. */
const ways = [
  ['WebSocket, passed on to the node', 'direct', {}, 100],
  ['WebSocket, translated by the API server', 'translated', {}, 20],
  ['SPDY', 'direct', spdy, 20],
] as const;

/** Waits; sends back what comes to port 9000, and what is posted to /cgi-bin/echo of port 8080. */
const waits = String.raw`
  mkdir -p /tmp/w/cgi-bin; echo web >/tmp/w/index.html
  printf '#!/bin/sh\nprintf "Content-Type: application/octet-stream\\r\\n\\r\\n"; exec cat\n' >/tmp/w/cgi-bin/echo
  chmod +x /tmp/w/cgi-bin/echo; httpd -p 8080 -h /tmp/w
  nc -ll -p 9000 -e cat &
  trap "exit 0" TERM; while true; do sleep 0.2; done`;
const figures: Record<string, unknown> = {};

let lab: LeaseLab;
let direct: LeasedNode;
let translated: LeasedNode;
let idle: Promise<Idle> | undefined;

const real = process.env.GPULEASE_NODES !== 'hollow';

beforeAll(async () => {
  if (!real) return;
  const from = Date.now();
  lab = await startLeaseLab('streams');
  if (!lab.real) return;
  [direct, translated] = await Promise.all([lab.lease('direct'), lab.lease('translated', { nodeInfo: {} })]);
  await Promise.all([direct.run('direct', waits), translated.run('translated', waits)]);
  figures.labSeconds = (Date.now() - from) / 1000;
  idle = startIdle();
  // Whoever looks at it hears of it.
  idle.catch(() => undefined);
});
afterAll(async () => {
  (await idle?.catch(() => undefined))?.end();
  await lab?.stop();
  console.log(JSON.stringify(figures));
});

const exec = (pod: string, command: string, options: Parameters<LeaseLab['kubectl']>[1] = {}, ...flags: string[]) =>
  lab.kubectl(['exec', ...flags, pod, '--', 'sh', '-c', command], options);
const sha256 = (data: Buffer) => createHash('sha256').update(data).digest('hex');

function channels(pod: string, subresource: string, query: object, protocol: ChannelProtocol): Promise<ChannelSocket> {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) for (const one of [value].flat()) params.append(name, String(one));
  const path = `/api/v1/namespaces/${lab.namespace}/pods/${pod}/${subresource}?${params}`;
  return openChannels(targetOf(lab.consumerPlane.kubeconfig), path, protocol);
}
const shell = (command: string, more: object = {}) => ({
  container: 'main',
  stdout: true,
  stderr: true,
  ...more,
  command: ['sh', '-c', command],
});

/** What an API server counts of the ways in which it served WebSocket callers. */
async function servedBy(way: 'proxied_to_kubelet' | 'translated_at_apiserver', subresource: string): Promise<number> {
  const { stdout } = await lab.kubectl(['get', '--raw', '/metrics']);
  const line = stdout
    .split('\n')
    .find(
      (one) =>
        one.includes('websocket_streaming_requests_total') && one.includes(way) && one.includes(`"${subresource}"`),
    );
  return Number(line?.split(' ').at(-1) ?? 0);
}

describe.runIf(real)('streams', () => {
  test('a node declares that it takes WebSockets when its provider does, and not otherwise', async () => {
    const features = async (on: LeasedNode) =>
      (await lab.consumer.get<Node>(resources.nodes, { name: on.name }))?.status?.declaredFeatures;
    expect(await features(direct)).toEqual(['ExtendWebSocketsToKubelet']);
    expect(await features(translated)).toBeUndefined();
    for (const [pod, way] of [
      ['direct', 'proxied_to_kubelet'],
      ['translated', 'translated_at_apiserver'],
    ] as const) {
      const before = await servedBy(way, 'exec');
      expect(await exec(pod, 'echo here')).toMatchObject({ code: 0, stdout: 'here\n' });
      // What is to be idle may be opened meanwhile.
      expect(await servedBy(way, 'exec')).toBeGreaterThan(before);
    }
  });

  describe('exit codes', () => {
    const codes = (step: number) => Array.from({ length: 256 / step }, (_, i) => i * step);
    test.each<[string, string, ChannelProtocol, number[]]>([
      ['WebSocket v5, passed on to the node', 'direct', 'v5.channel.k8s.io', codes(1)],
      ['WebSocket v4, passed on to the node', 'direct', 'v4.channel.k8s.io', [...codes(32), 1, 127, 137, 255]],
      [
        'WebSocket v5, translated by the API server',
        'translated',
        'v5.channel.k8s.io',
        [...codes(32), 1, 127, 137, 255],
      ],
      ['WebSocket v4, to a node that declares nothing', 'translated', 'v4.channel.k8s.io', [0, 1, 255]],
    ])('by %s', async (_, pod, protocol, wanted) => {
      const from = Date.now();
      const left = [...wanted];
      const told = new Map<number, number | undefined>();
      const worker = async () => {
        for (let code = left.shift(); code !== undefined; code = left.shift()) {
          const socket = await channels(pod, 'exec', shell(`exit ${code}`), protocol);
          expect(socket.protocol).toBe(protocol);
          await socket.ended;
          told.set(code, socket.exitCode());
        }
      };
      await Promise.all(Array.from({ length: 8 }, worker));
      expect([...told].filter(([code, got]) => code !== got)).toEqual([]);
      expect(told.size).toBe(wanted.length);
      figures[`exit codes, ${protocol} ${pod}`] = { of: wanted.length, seconds: (Date.now() - from) / 1000 };
    });

    test('by SPDY', async () => {
      const wanted = [0, 1, 7, 127, 130, 255];
      const told = await Promise.all(wanted.map((code) => exec('direct', `exit ${code}`, { env: spdy })));
      expect(told.map(({ code }) => code)).toEqual(wanted);
    });
  });

  describe.each(ways)('by %s', (way, pod, env, megabytes) => {
    test('both outputs and the exit code come apart', async () => {
      const told = await exec(pod, 'echo out; echo err >&2; exit 7', { env });
      expect(told).toMatchObject({ code: 7, stdout: 'out\n' });
      expect(told.stderr).toContain('err\n');
    });

    test('input that has ended leaves the output open', async () => {
      const told = await exec(pod, 'cat; echo and after', { env, input: Buffer.from('input ') }, '-i');
      expect(told).toMatchObject({ code: 0, stdout: 'input and after\n' });
    });

    // A kubelet that closes with input unread resets its connection, and so its API server loses what was said last, now and
    // then, whoever asks. Here nothing more is lost; and what was lost is not taken for success, and said.
    test('a process that ends while its input still comes is told with its code, or as lost', async () => {
      for (let i = 0; i < 5; i++) {
        const child = lab.spawnKubectl(
          ['exec', '-i', pod, '--', 'sh', '-c', 'head -n 3 >/dev/null; echo enough; exit 5'],
          env,
        );
        child.stdin!.on('error', () => undefined);
        const comes = setInterval(() => child.stdin!.write(`${'x'.repeat(200)}\n`), 1);
        let text = '';
        let said = '';
        child.stdout!.on('data', (chunk) => {
          text += chunk;
        });
        child.stderr!.on('data', (chunk) => {
          said += chunk;
        });
        const [code] = (await once(child, 'close')) as [number];
        clearInterval(comes);
        if (code === 5) expect(text).toBe('enough\n');
        else expect([code, said]).toEqual([1, expect.stringMatching(/lost|closed|EOF|reset|broken/i)]);
      }
    });

    test(`${megabytes} MB of input arrive whole`, async () => {
      const data = randomBytes(megabytes << 20);
      const from = Date.now();
      const told = await exec(pod, 'sha256sum', { env, input: data }, '-i');
      expect(told.stdout).toBe(`${sha256(data)}  -\n`);
      figures[`${megabytes} MB in, ${way}`] = (Date.now() - from) / 1000;
    });

    test('a terminal is told of its size, and when it changes', async () => {
      // Says each size that it sees, and ends with the second.
      const inPod =
        'test -t 0 || exit 9; for i in $(seq 300); do now=$(stty size); ' +
        'if [ "$now" != "$last" ] && [ "$now" != "0 0" ]; then echo "$now"; [ -z "$last" ] || exit 3; last=$now; fi; sleep 0.1; done';
      const kubectl = [lab.kubectlPath, ...lab.kubectlArgs, 'exec', '-it', pod, '--', 'sh', '-c', inPod]
        .map((word) => `'${word}'`)
        .join(' ');
      // Again and again, in case that kubectl was not there yet.
      const resize = '(for rows in 40 41 40 41 40 41 40 41; do sleep 1; stty rows $rows cols 132 </dev/tty; done) &';
      const { stdout } = await promisify(execFile)(
        'script',
        ['-qec', `stty rows 31 cols 101; ${resize} ${kubectl}; echo code $?; kill $! 2>/dev/null`, '/dev/null'],
        { env: { ...process.env, ...env } },
      );
      expect(stdout).toMatch(/(31 101|4\d 132)\r\n4\d 132\r\n.*code 3\r\n/s);
    });

    test('kubectl cp brings a file there and back', async () => {
      const data = randomBytes(5 << 20);
      const file = join(lab.dir, `${pod}.bin`);
      writeFileSync(file, data);
      expect(await lab.kubectl(['cp', file, `${pod}:/tmp/there.bin`], { env })).toMatchObject({ code: 0 });
      expect((await exec(pod, 'sha256sum </tmp/there.bin', { env })).stdout).toBe(`${sha256(data)}  -\n`);
      expect(await lab.kubectl(['cp', `${pod}:/tmp/there.bin`, `${file}.back`], { env })).toMatchObject({ code: 0 });
      expect(sha256(readFileSync(`${file}.back`))).toBe(sha256(data));
    });

    test('a caller who is killed is seen by the process in the pod', async () => {
      const mark = `/tmp/gone-${randomBytes(4).toString('hex')}`;
      const child = lab.spawnKubectl(['exec', '-i', pod, '--', 'sh', '-c', `echo begun; cat; echo gone >${mark}`], env);
      await said(child, 'begun');
      child.kill('SIGKILL');
      await eventually(
        async () => (await exec(pod, `cat ${mark}`)).stdout === 'gone\n',
        'the process to see its input end',
      );
    });

    test('a process that is killed is told with its code', async () => {
      expect(await exec(pod, 'kill -9 $$', { env })).toMatchObject({ code: 137 });
    });

    test('twenty connections at a time through one port-forward', async () => {
      const [port = 0] = await freePorts(1);
      const child = lab.spawnKubectl(['port-forward', pod, `${port}:8080`], env);
      try {
        await said(child, 'Forwarding from 127.0.0.1');
        const echoed = await Promise.all(Array.from({ length: 20 }, () => echo(port, randomBytes(256 << 10))));
        expect(echoed).toEqual(Array(20).fill(true));
      } finally {
        child.kill('SIGKILL');
      }
    });

    test('a connection that is lost on the way ends kubectl with an error', async () => {
      const child = lab.spawnKubectl(['exec', pod, '--', 'sh', '-c', 'echo begun; sleep 60'], env);
      await said(child, 'begun');
      let error = '';
      child.stderr!.on('data', (chunk) => {
        error += chunk;
      });
      lab.wire.reset();
      const [code] = (await once(child, 'exit')) as [number];
      figures[`cut, ${way}`] = { code, error: error.trim().split('\n').at(-1) };
      expect(code).not.toBe(0);
      expect(error).not.toBe('');
    });
  });

  test('twenty port-forwards side by side', async () => {
    const sockets = await Promise.all(
      Array.from({ length: 20 }, () => channels('direct', 'portforward', { ports: 8080 }, 'v4.channel.k8s.io')),
    );
    for (const socket of sockets) socket.send(0, 'GET /index.html HTTP/1.0\r\n\r\n');
    for (const socket of sockets)
      await eventually(async () => socket.received(0).toString().endsWith('\r\n\r\nweb\n'), 'the page through each');
    for (const socket of sockets) socket.destroy();
  });

  test('attach sees what a pod says from then on, and its end', async () => {
    const pod = await direct.run('attached', 'while ! [ -e /tmp/end ]; do echo tick; sleep 0.2; done; exit 5');
    const child = lab.spawnKubectl(['attach', pod.metadata.name]);
    await said(child, 'tick');
    await exec('attached', 'touch /tmp/end');
    const [code] = (await once(child, 'exit')) as [number];
    figures.attachCode = code;
  });

  describe('logs', () => {
    const key = () => ({ namespace: lab.namespace, name: 'teller' });
    let lines: { time: string; text: string }[];
    beforeAll(async () => {
      const tells =
        'if [ -e /data/once ]; then echo second 1; sleep 0.3; echo second 2 >&2; sleep 1.2; echo second 3; trap "exit 0" TERM; while true; do sleep 0.2; done; ' +
        'else touch /data/once; echo first 1; exit 1; fi';
      await direct.run('teller', tells, {
        restartPolicy: 'Always',
        containers: [
          {
            name: 'main',
            image: TOOLS_IMAGE,
            command: ['sh', '-c', tells],
            volumeMounts: [{ name: 'data', mountPath: '/data' }],
            resources: { limits: { cpu: '500m', memory: '64Mi' } },
          },
        ],
        volumes: [{ name: 'data', emptyDir: {} }],
      });
      await eventually(async () => (await logs()).includes('second 3'), 'the pod to have restarted', 60);
      expect((await lab.consumer.get<Pod>(resources.pods, key()))?.status?.containerStatuses?.[0]?.restartCount).toBe(
        1,
      );
      lines = (await logs('--timestamps'))
        .trimEnd()
        .split('\n')
        .map((line) => ({ time: line.slice(0, line.indexOf(' ')), text: line.slice(line.indexOf(' ') + 1) }));
    });
    const logs = async (...flags: string[]) => (await lab.kubectl(['logs', 'teller', ...flags])).stdout;

    test.each<[string, () => string[], string]>([
      ['all', () => [], 'second 1\nsecond 2\nsecond 3\n'],
      ['of the container before', () => ['--previous'], 'first 1\n'],
      ['the last', () => ['--tail=1'], 'second 3\n'],
      ['none of the last', () => ['--tail=0'], ''],
      ['as many bytes as asked for', () => ['--limit-bytes=10'], 'second 1\ns'],
      ['of an hour', () => ['--since=1h'], 'second 1\nsecond 2\nsecond 3\n'],
      ['since a line was written', () => [`--since-time=${lines[2]!.time}`], 'second 3\n'],
      ['since tomorrow', () => [`--since-time=${new Date(Date.now() + 86_400_000).toISOString()}`], ''],
      ['of all containers, named', () => ['--all-containers', '--prefix', '--tail=1'], '[pod/teller/main] second 3\n'],
    ])('%s', async (_, flags, expected) => {
      expect(await logs(...flags())).toBe(expected);
    });

    test('with the time of each line', () => {
      expect(lines.map(({ text }) => text)).toEqual(['second 1', 'second 2', 'second 3']);
      for (const { time } of lines) expect(Math.abs(Date.now() - Date.parse(time))).toBeLessThan(600_000);
    });

    test('that are followed end when the way to the provider is cut', async () => {
      const child = lab.spawnKubectl(['logs', '-f', 'teller']);
      await said(child, 'second 3');
      lab.wire.reset();
      // An API server that loses a kubelet ends the answer in order, so kubectl cannot tell: it is so with any node.
      await once(child, 'exit');
    });
  });

  test(
    `what is idle for ${idleSeconds} s goes on`,
    async () => {
      await (await idle!).check();
    },
    (idleSeconds + 60) * 1000,
  );

  test('nothing is left open', async () => {
    (await idle!).end();
    // Two watches a lease, and calls that are kept for the next.
    await eventually(async () => lab.wire.connections <= 2 * 2 + 8, 'connections to be closed');
    figures.connectionsLeft = lab.wire.connections;
  });
});

interface Idle {
  check(): Promise<void>;
  end(): void;
}

/** Opened first and looked at last: what is idle costs no time of its own. Not over the wire, which other tests cut. */
async function startIdle(): Promise<Idle> {
  const own = await lab.lease('idle', {}, { wired: false });
  await own.run('idle', waits);
  const from = Date.now();
  const shells = await Promise.all(
    ([{}, spdy] as const).map(async (env) => {
      const child = lab.spawnKubectl(['exec', '-i', 'idle', '--', 'sh', '-c', 'echo begun; cat'], env);
      await said(child, 'begun');
      return child;
    }),
  );
  const [port = 0] = await freePorts(1);
  const forward = lab.spawnKubectl(['port-forward', 'idle', `${port}:9000`]);
  await said(forward, 'Forwarding from 127.0.0.1');
  const through = connect(port, '127.0.0.1');
  let heard = '';
  through.on('data', (chunk) => {
    heard += chunk;
  });
  through.on('error', () => undefined);
  through.write('one;');
  await eventually(async () => heard === 'one;', 'the port-forward to echo');
  const follows = lab.spawnKubectl(['logs', '-f', 'idle']);
  const children: ChildProcess[] = [...shells, forward, follows];
  return {
    async check() {
      await sleep(Math.max(0, from + idleSeconds * 1000 - Date.now()));
      for (const child of shells) {
        const answer = said(child, 'still here');
        child.stdin!.write('still here\n');
        await answer;
      }
      through.write('two;');
      await eventually(async () => heard === 'one;two;', 'the idle port-forward to echo');
      const line = said(follows, 'said at last');
      await exec('idle', 'echo said at last >/proc/1/fd/1');
      await line;
      expect(children.every((child) => child.exitCode === null)).toBe(true);
      figures.idleSeconds = (Date.now() - from) / 1000;
    },
    end() {
      through.destroy();
      for (const child of children) child.kill('SIGKILL');
    },
  };
}

/** Until a program has said it, on its standard output. */
async function said(child: ChildProcess, text: string, timeoutSeconds = 30): Promise<void> {
  let all = '';
  let errors = '';
  const onData = (chunk: Buffer) => {
    all += chunk.toString();
  };
  const onError = (chunk: Buffer) => {
    errors += chunk.toString();
  };
  child.stdout!.on('data', onData);
  child.stderr!.on('data', onError);
  try {
    await eventually(
      async () => {
        if (child.exitCode !== null && !all.includes(text)) throw new Error(`it ended (${child.exitCode}): ${errors}`);
        return all.includes(text);
      },
      `kubectl to say ${text}`,
      timeoutSeconds,
    );
  } finally {
    child.stdout!.off('data', onData);
    child.stderr!.off('data', onError);
  }
}

/** Whether what is posted comes back whole. */
async function echo(port: number, data: Buffer): Promise<boolean> {
  const response = await fetch(`http://127.0.0.1:${port}/cgi-bin/echo`, {
    method: 'POST',
    body: new Uint8Array(data),
    headers: { Connection: 'close' },
  });
  return Buffer.from(await response.arrayBuffer()).equals(data);
}
