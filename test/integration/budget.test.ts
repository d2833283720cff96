/** A budget on real parts: who waits and why, what is counted though the operator dies, and two tokens, each in its own. */
import { afterAll, describe, expect, it } from 'vitest';
import type { GpuBudget } from '../../operator/api/budget.ts';
import type { GpuLease } from '../../operator/api/lease.ts';
import { formatAmount } from '../../operator/core/money/amount.ts';
import { type KubeObject, resources } from '../../operator/engine/types.ts';
import { example, type Sandbox } from '../../operator/sandbox/sandbox.ts';
import {
  checkConservation,
  kubectl,
  lease,
  leaseManifest,
  namespaceReady,
  offersReady,
  settle,
  until,
} from '../../operator/sandbox/scenario.ts';
import { quiet, scratch } from '../support/clusters.ts';
import { startSandbox } from '../support/watched-sandbox.ts';

let sandbox: Sandbox | undefined;
afterAll(() => sandbox?.stop());

const apply = (object: KubeObject) =>
  sandbox!.consumerCluster.apply(object.kind === 'GpuLease' ? resources.gpuLeases : resources.gpuBudgets, object, {
    fieldManager: 'kubectl',
  });
const stored = (name: string) => sandbox!.consumerCluster.get<GpuBudget & KubeObject>(resources.gpuBudgets, { name });
const spent = async (name: string) => (await stored(name))?.status?.windows?.find((one) => one.window === 'Day')?.spent;
const readyOf = async (name: string) => {
  const found = await sandbox!.consumerCluster.get<GpuLease & KubeObject>(resources.gpuLeases, {
    namespace: 'ml',
    name,
  });
  return found?.status?.conditions?.find((one) => one.type === 'Ready');
};
const waits = (name: string, says: string) =>
  until(`lease ${name} held by a budget: ${says}`, 60, async () => {
    const at = await readyOf(name);
    return at?.reason === 'BudgetExceeded' && at.message.includes(says) ? at : undefined;
  });
const goesOn = (name: string) =>
  until(`lease ${name} going on`, 60, async () =>
    (await readyOf(name))?.reason === 'BudgetExceeded' ? undefined : true,
  );
const gone = (name: string) =>
  until(`lease ${name} gone`, 60, async () =>
    (await sandbox!.consumerCluster.get(resources.gpuLeases, { namespace: 'ml', name })) ? undefined : true,
  );

describe('a budget', () => {
  it('holds what does not fit, and counts what is spent to the base unit, though the operator is killed', async () => {
    sandbox = await startSandbox({ dir: scratch('budget'), report: quiet, voucherPeriodSeconds: 2 });
    await namespaceReady(sandbox);
    await offersReady(sandbox);
    const { consumerCluster, operator } = sandbox;
    // The example's budget and its labelled namespace, and its two leases.
    await kubectl(sandbox, 'label', 'namespace', 'ml', 'team=ml');
    await apply(example('02-budget', 'budget.yaml')[0]!);
    const [fits, tooMany] = example('02-budget', 'lease.yaml', 'too-many.yaml');
    await apply(tooMany!);
    const running = await lease(sandbox, [fits!], quiet);
    await waits('too-many', 'GpuBudget ml allows 2 GPUs at a time');
    await consumerCluster.delete(resources.gpuLeases, { namespace: 'ml', name: 'too-many' });
    await gone('too-many');

    await until('something spent', 60, async () => (Number(await spent('ml')) > 0 ? true : undefined));
    await operator.kill('SIGKILL');
    await operator.restart();
    const before = Number(await spent('ml'));
    await until('more spent', 90, async () => (Number(await spent('ml')) > before ? true : undefined));

    // Another token than the budget's waits until there is a budget for it.
    const native = leaseManifest('native', 'RTX4090', '10', {}, 'GPU');
    await apply(native);
    await waits('native', 'GpuBudget ml is in USDC, and the lease pays with GPU');
    await apply({
      apiVersion: 'gpulease.dev/v1alpha1',
      kind: 'GpuBudget',
      metadata: { name: 'native' },
      spec: { assetSymbol: 'GPU', otherAssets: 'Allow', limits: [{ window: 'Day', amount: '100' }] },
    } as KubeObject);
    await goesOn('native');
    const inGpu = await lease(sandbox, [native], quiet);
    await until('GPU spent', 60, async () => (Number(await spent('native')) > 0 ? true : undefined));
    // Two GPUs are leased now, in whatever token.
    await apply(leaseManifest('third', 'RTX4090', '0.60'));
    await waits('third', 'leased 2, asked for 1 more');
    await consumerCluster.delete(resources.gpuLeases, { namespace: 'ml', name: 'third' });
    await gone('third');

    const bill = await settle(sandbox, running, quiet);
    const nativeBill = await settle(sandbox, inGpu, quiet);
    expect(await spent('ml')).toBe(formatAmount(BigInt(bill.paid) + BigInt(bill.fee), 6));
    expect(await spent('native')).toBe(formatAmount(BigInt(nativeBill.paid) + BigInt(nativeBill.fee), 18));
    await until('nothing left open', 60, async () =>
      (await stored('ml'))?.status?.gpus === 0 && (await stored('ml'))?.status?.counted === undefined
        ? true
        : undefined,
    );
    await checkConservation(sandbox);
  }, 400_000);

  it('that is full lets the next lease in when its limit is raised', async () => {
    const limit = (amount: string) =>
      apply({
        apiVersion: 'gpulease.dev/v1alpha1',
        kind: 'GpuBudget',
        metadata: { name: 'ml' },
        spec: { namespaceSelector: { matchLabels: { team: 'ml' } }, limits: [{ window: 'Day', amount }] },
      } as KubeObject);
    await limit('0.1');
    const next = leaseManifest('next', 'RTX4090', '0.60');
    await apply(next);
    const at = await waits('next', 'GpuBudget ml allows 0.1 USDC a day');
    expect(at.message).toContain('Raise its limit');
    await limit('5');
    await goesOn('next');
    const running = await lease(sandbox!, [next], quiet);
    await settle(sandbox!, running, quiet);
  }, 200_000);
});
