/** What people do past the programs: objects taken away by hand. What is left of them is found, and ended. */
import type { Hex32 } from '../../../operator/api/messages.ts';
import { recordName } from '../../../operator/core/allocation/record.ts';
import { resources } from '../../../operator/engine/types.ts';
import { namespace } from '../../../operator/sandbox/sandbox.ts';
import { escrowClient, until } from '../../../operator/sandbox/scenario.ts';
import type { Lab, LabLease } from '../lab.ts';
import { expect, fairBill, fresh, type Scenario } from '../scenario.ts';

async function servedLease(lab: Lab, name: string): Promise<{ lease: LabLease; leaseId: Hex32 }> {
  const lease = await lab.begin(fresh(name));
  await lease.ready();
  if (!lab.sandbox.simulated) await lease.pod(`${lease.name}-pod`);
  return { lease, leaseId: lease.witness.lease!.status!.settlement!.leaseId as Hex32 };
}

async function closed(lab: Lab, leaseId: Hex32, seconds: number): Promise<void> {
  const client = await escrowClient(lab.sandbox);
  await until('the escrow closed', seconds, async () => ((await client.lease(leaseId))?.closed ? true : undefined));
}

const forcedAway = (withRecord: boolean): Scenario => ({
  name: withRecord ? 'lease-forced-away' : 'lease-and-record-forced-away',
  broke: withRecord
    ? "a lease's finalizer removed and the lease deleted, while it is served"
    : "a lease deleted past its finalizer, and the operator's record of it too, while it is served",
  async run(lab, clock) {
    const { lease, leaseId } = await servedLease(lab, withRecord ? 'forced' : 'forgotten');
    const { consumerCluster } = lab.sandbox;
    const key = { namespace: 'ml', name: lease.name };
    if (!withRecord) await lab.kill('operator');
    await consumerCluster.patch(resources.gpuLeases, key, { metadata: { finalizers: null } });
    await consumerCluster.delete(resources.gpuLeases, key);
    await lease.gone(10);
    if (!withRecord) {
      await consumerCluster.delete(resources.secrets, { namespace, name: `lease-${lease.uid}` });
      await lab.revive('operator');
    }
    clock.mended();
    await closed(lab, leaseId, 150);
    await clock.wanted();
    lease.witness.stop();
    if (withRecord) await fairBill(lab, lease, 5);
  },
});

const recordOfGateway: Scenario = {
  name: 'gateway-record-deleted',
  broke: "the gateway's record of a lease deleted, while it is served: its consumer asks for it again",
  async run(lab, clock) {
    const { lease, leaseId } = await servedLease(lab, 'unrecorded');
    const key = { namespace, name: recordName(leaseId) };
    await lab.sandbox.providerCluster.delete(resources.secrets, key);
    clock.mended();
    await until('the record made again', 60, async () => ((await lab.vouched(leaseId)) ? true : undefined));
    await lease.says(/^Serving$/, 30);
    await clock.wanted();
    const escrow = await (await escrowClient(lab.sandbox)).lease(leaseId);
    expect(escrow?.closed === false, 'the lease was ended for a record that its provider lost');
    await lease.end();
  },
};

export const people: Scenario[] = [forcedAway(true), forcedAway(false), recordOfGateway];
