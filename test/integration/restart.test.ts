/** What dies comes back to the same lease: one escrow, the same pod, a right bill. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Interface } from 'ethers';
import { afterAll, afterEach, describe, expect, it } from 'vitest';
import type { OutboxEntry } from '../../operator/adapters/chain/outbox.ts';
import type { GpuLease } from '../../operator/api/lease.ts';
import { leaseEscrow } from '../../operator/contracts/generated/lease-escrow.ts';
import { type KubeObject, resources } from '../../operator/engine/types.ts';
import type { Sandbox } from '../../operator/sandbox/sandbox.ts';
import {
  checkConservation,
  kubectl,
  lease,
  leaseManifest,
  minimal,
  namespaceReady,
  offersReady,
  settle,
  until,
} from '../../operator/sandbox/scenario.ts';
import { quiet, scratch } from '../support/clusters.ts';
import { startSandbox } from '../support/watched-sandbox.ts';

let sandbox: Sandbox | undefined;
const figures: Record<string, unknown> = {};

afterEach(async () => {
  await sandbox?.stop();
  sandbox = undefined;
});
afterAll(() => console.log(JSON.stringify(figures)));

/** How long the operator stays dead: long enough for its node to count as lost. */
const downSeconds = 60;

interface Pod extends KubeObject {
  status?: { phase?: string; containerStatuses?: { restartCount: number; containerID?: string }[] };
}

const remotePods = async () =>
  (
    await sandbox!.providerCluster.list<Pod>(resources.pods, { labelSelector: 'app.kubernetes.io/managed-by=gpulease' })
  ).items.map((pod) => ({
    uid: pod.metadata.uid,
    restarts: pod.status?.containerStatuses?.map((c) => c.restartCount),
    container: pod.status?.containerStatuses?.map((c) => c.containerID),
  }));

/** Escrows that were ever opened, by the chain's own log. */
async function opened(): Promise<number> {
  const topic = new Interface(leaseEscrow.abi).getEvent('LeaseOpened')!.topicHash;
  const logs = await sandbox!.chain.rpc<unknown[]>('eth_getLogs', {
    address: sandbox!.deployment.escrow,
    topics: [topic],
    fromBlock: '0x0',
    toBlock: 'latest',
  });
  return logs.length;
}

describe('killed without warning, with a pod running', () => {
  it(`the operator, down for ${downSeconds} s, and the gateway: pods go on, the bill is right`, async () => {
    sandbox = await startSandbox({ dir: scratch('restart'), report: quiet, voucherPeriodSeconds: 2 });
    await namespaceReady(sandbox);
    await offersReady(sandbox);
    const running = await minimal(sandbox, quiet);
    const before = await remotePods();
    expect(before).toHaveLength(1);
    await sleep(5000);

    await sandbox.operator.kill('SIGKILL');
    await sleep(downSeconds * 1000);
    expect(await remotePods()).toEqual(before);
    const restarted = Date.now();
    await sandbox.operator.restart();
    await until('the node Ready again', 60, async () =>
      (await kubectl(sandbox!, 'get', 'node', running.witness.node!)).includes(' Ready') ? true : undefined,
    );
    figures.readyAgainSeconds = (Date.now() - restarted) / 1000;
    expect(await remotePods()).toEqual(before);
    if (!sandbox.simulated)
      expect(await kubectl(sandbox, 'logs', '-n', 'ml', 'hello-gpu', '--tail', '1')).toMatch(/^GPU: GPU-/);

    await sandbox.gateway.kill('SIGKILL');
    await sleep(3000);
    await sandbox.gateway.restart();
    await sleep(5000);
    expect(await remotePods()).toEqual(before);
    const pod = await sandbox.consumerCluster.get<Pod>(resources.pods, { namespace: 'ml', name: 'hello-gpu' });
    expect(pod?.status?.phase).toBe('Running');
    expect(await opened()).toBe(1);

    const bill = await settle(sandbox, running, quiet);
    figures.restart = { servedSeconds: bill.servedSeconds, readySeconds: bill.readySeconds };
    await checkConservation(sandbox);
  }, 300_000);
});

describe('killed between two steps of opening the escrow', () => {
  it.each(['beforeBroadcast', 'afterBroadcast'])('%s: one escrow', async (point) => {
    const dir = scratch(`fault-${point}`);
    const faults = join(dir, 'faults');
    mkdirSync(faults, { recursive: true });
    writeFileSync(join(faults, 'at.json'), JSON.stringify({ point, do: 'kill', match: '"open:' }));
    sandbox = await startSandbox({
      dir,
      report: quiet,
      voucherPeriodSeconds: 2,
      entries: { operator: [new URL('../support/faulty-operator.ts', import.meta.url).pathname] },
      operatorEnv: { FAULT_DIR: faults },
    });
    await namespaceReady(sandbox);
    await offersReady(sandbox);
    const { consumerCluster, operator } = sandbox;
    const manifest = leaseManifest('once', 'RTX4090', '0.60');
    const made = lease(sandbox, [manifest], quiet);
    await until('the operator killing itself', 30, () => (operator.running ? undefined : true));
    const { hash } = JSON.parse(readFileSync(join(faults, 'reached'), 'utf8')) as OutboxEntry;
    const mined = async () => (await sandbox!.chain.rpc<object | null>('eth_getTransactionReceipt', hash)) !== null;
    if (point === 'beforeBroadcast') expect(await mined()).toBe(false);
    await sleep(1000);
    await operator.restart();
    const running = await made;
    // The transaction that was signed before the kill is the one that opened the escrow.
    expect(await mined()).toBe(true);
    expect(await opened()).toBe(1);
    const now = await consumerCluster.get<GpuLease & KubeObject>(resources.gpuLeases, {
      namespace: 'ml',
      name: 'once',
    });
    expect(now?.status?.attempt).toBe(1);
    await settle(sandbox, running, quiet);
    await checkConservation(sandbox);
  }, 200_000);
});
