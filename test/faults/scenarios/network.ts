/** The ways between the parts: reset, cut, gone silent, slow. */
import { spawn } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { resources } from '../../../operator/engine/types.ts';
import { until } from '../../../operator/sandbox/scenario.ts';
import type { Lab, LabLease, Program } from '../lab.ts';
import { expect, fairBill, fresh, type Scenario } from '../scenario.ts';

type Wire = keyof Lab['wires'];
const between: Record<Wire, string> = {
  operatorToGateway: 'operator and gateway',
  operatorToCluster: 'operator and its API server',
  gatewayToCluster: 'gateway and its API server',
};
const dashed = (wire: Wire) => wire.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`);

const reset = (wire: Wire): Scenario => ({
  name: `${dashed(wire)}-reset`,
  broke: `every connection between ${between[wire]} reset, three times`,
  async run(lab, clock) {
    for (let i = 0; i < 3; i++) {
      lab.wires[wire].reset();
      await sleep(1000);
    }
    clock.mended();
  },
});

const cut = (wire: Wire, seconds: number): Scenario => ({
  name: `${dashed(wire)}-cut-${seconds}s`,
  broke: `${between[wire]} cut apart (RST) for ${seconds} s`,
  async run(lab, clock) {
    lab.wires[wire].cut();
    await sleep(seconds * 1000);
    lab.wires[wire].mend();
    clock.mended();
  },
});

const silent = (wire: Wire, seconds: number, forget: boolean): Scenario => ({
  name: `${dashed(wire)}-silent-${seconds}s${forget ? '-forgotten' : ''}`,
  broke: `${between[wire]} half-open for ${seconds} s${forget ? ', old connections dead for ever' : ''}`,
  async run(lab, clock) {
    lab.wires[wire].freeze();
    await sleep(seconds * 1000);
    lab.wires[wire].mend({ forget });
    clock.mended();
  },
});

/** All ways to a program are silent at once, and it goes on where it stood: no connection ends, and no lock is given up. */
const frozen = (program: Program, seconds: number): Scenario => ({
  name: `${program}-frozen-${seconds}s`,
  broke: `${program} SIGSTOPped for ${seconds} s while it serves several leases, then woken`,
  async run(lab, clock) {
    const others: LabLease[] = [];
    for (let i = 0; i < 4; i++) others.push(await lab.begin(fresh('still')));
    for (const one of others) await one.ready();
    const deaths = lab.deaths.get(program) ?? 0;
    await lab.sandbox[program].kill('SIGSTOP');
    try {
      await sleep(seconds * 1000);
    } finally {
      await lab.sandbox[program].kill('SIGCONT');
    }
    clock.mended();
    for (const one of others) await one.ready();
    await clock.wanted();
    // Who has lost its lock, after 10 s, ends itself, and nobody is to do so for less.
    const died = (lab.deaths.get(program) ?? 0) > deaths;
    expect(
      died === seconds > 10,
      `the ${program} ${died ? 'ended itself' : 'did not end itself when it lost the lock'}`,
    );
    for (const one of others) await one.end();
    for (const one of others) await fairBill(lab, one, 5);
  },
});

interface Node {
  metadata: { name: string };
  status?: { conditions?: { type: string; status: string; reason?: string; message?: string }[] };
}

/** Ready of the base lease's node. */
export async function nodeReady(lab: Lab) {
  const node = await lab.sandbox.consumerCluster.get<Node>(resources.nodes, { name: lab.base.witness.node! });
  return node?.status?.conditions?.find((c) => c.type === 'Ready');
}

export const network: Scenario[] = [
  reset('operatorToGateway'),
  cut('operatorToGateway', 12),
  {
    name: 'operator-to-gateway-cut-45s',
    broke: 'operator and gateway cut apart (RST) for 45 s: the node says NotReady',
    async run(lab, clock) {
      const since = Date.now();
      lab.wires.operatorToGateway.cut();
      await until('the node NotReady', 40, async () => ((await nodeReady(lab))?.status === 'False' ? true : undefined));
      const seconds = (Date.now() - since) / 1000;
      const ready = await nodeReady(lab);
      expect(ready?.reason === 'ProviderUnreachable', `the node says ${ready?.reason}`);
      clock.note(`NotReady after ${seconds.toFixed(0)} s: ${ready?.reason}`);
      await sleep(Math.max(0, 45_000 - (Date.now() - since)));
      lab.wires.operatorToGateway.mend();
      clock.mended();
    },
  },
  silent('operatorToGateway', 15, false),
  silent('operatorToGateway', 15, true),
  {
    name: 'operator-to-gateway-slow-opening',
    broke: 'operator and gateway 400 ms and 30 kB/s apart while a lease is made',
    async run(lab, clock) {
      lab.wires.operatorToGateway.delay(400);
      lab.wires.operatorToGateway.limit(30_000);
      clock.mended();
      const lease = await lab.begin(fresh('slow'));
      await lease.ready();
      lab.wires.operatorToGateway.mend();
      await clock.wanted();
      await lease.end();
      await fairBill(lab, lease, 5);
    },
  },
  {
    name: 'stream-reset',
    broke: 'kubectl exec and logs -f running while operator and gateway are reset: both say so and end',
    needs: 'real',
    async run(lab, clock) {
      const { sandbox } = lab;
      const start = (...args: string[]) => {
        const child = spawn(sandbox.kubectl, ['--kubeconfig', sandbox.consumer.kubeconfigPath, '-n', 'ml', ...args]);
        let text = '';
        for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (text += chunk));
        const code = new Promise<number | null>((resolve) => child.once('exit', resolve));
        return { child, code, text: () => text };
      };
      const exec = start('exec', 'hello-gpu', '--', 'sh', '-c', 'echo started; sleep 120');
      const logs = start('logs', '-f', '--tail', '1', 'hello-gpu');
      try {
        await until('both streams running', 20, () =>
          exec.text().includes('started') && logs.text().includes('GPU') ? true : undefined,
        );
        lab.wires.operatorToGateway.reset();
        clock.mended();
        const ended = await Promise.race([Promise.all([exec.code, logs.code]), sleep(15_000, undefined)]);
        expect(ended !== undefined, 'a stream hangs that was reset');
        // Kubernetes' own kubelets make kubectl say 0 here, too: an error stream that ends without a word counts as success.
        clock.note(`exec ended with ${ended[0]}, logs with ${ended[1]}`);
      } finally {
        exec.child.kill();
        logs.child.kill();
      }
    },
  },
  frozen('gateway', 8),
  frozen('gateway', 45),
  frozen('operator', 8),
  reset('operatorToCluster'),
  cut('operatorToCluster', 6),
  silent('operatorToCluster', 6, true),
  {
    name: 'operator-to-cluster-silent-25s',
    broke: 'operator and its API server half-open for 25 s: it loses the lock and ends itself',
    async run(lab, clock) {
      const before = lab.deaths.get('operator') ?? 0;
      lab.wires.operatorToCluster.freeze();
      await sleep(25_000);
      expect((lab.deaths.get('operator') ?? 0) > before, 'the operator did not end itself when it lost the lock');
      lab.wires.operatorToCluster.mend({ forget: true });
      clock.mended();
    },
  },
  reset('gatewayToCluster'),
  cut('gatewayToCluster', 12),
  silent('gatewayToCluster', 20, true),
];
