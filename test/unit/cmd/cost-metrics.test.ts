import { Registry } from 'prom-client';
import { expect, test } from 'vitest';
import { costMetrics } from '../../../operator/cmd/cost-metrics.ts';
import { exampleLeases, exampleReceipt } from '../../../operator/cmd/example-papers.ts';
import type { LeaseRecord } from '../../../operator/core/lease/observed.ts';
import { leaseId, offer, quoteRecord, record } from '../../support/builders.ts';

const serving = record({
  lease: { namespace: 'ml', name: 'train' },
  quote: quoteRecord({ gpus: 2, capacityType: 1 }),
  startedAt: '2026-01-01T00:00:10.000Z',
});

async function metricsOf(...records: LeaseRecord[]) {
  const registry = new Registry();
  const all = new Map(records.map((one, index) => [`uid-${index}`, one]));
  const offers = offer({}, { region: 'eu-north', labels: { 'kubernetes.io/arch': 'amd64' } });
  const metrics = costMetrics(
    registry,
    () => all,
    (name) => (name === 'ams-rtx4090' ? offers : undefined),
  );
  return { metrics, text: () => registry.metrics() };
}

test('a leased node costs what OpenCost calls so, with its labels', async () => {
  const text = await (await metricsOf(serving)).text();
  const labels = `instance="gpu-train-[0-9a-f]+",node="gpu-train-[0-9a-f]+",instance_type="RTX4090",region="eu-north",provider_id="gpulease://ams/${leaseId}",arch="amd64",asset="USDC"`;
  for (const [name, value] of Object.entries({
    node_gpu_hourly_cost: '0.36',
    node_gpu_count: '2',
    node_cpu_hourly_cost: '0',
    node_ram_hourly_cost: '0',
    node_total_hourly_cost: '0.72',
    kubecost_node_is_spot: '1',
  }))
    expect(text).toMatch(new RegExp(`^${name}\\{${labels}\\} ${value}$`, 'm'));
});

test.each([
  ['that is not Ready yet', { startedAt: undefined }],
  ['that the provider let go of', { release: { servedSeconds: 1, signature: '0x12', at: '' } as const }],
  ['that is settled', { settled: true }],
])('a lease %s costs no node anything', async (_, change) => {
  expect(await (await metricsOf({ ...serving, ...change })).text()).not.toMatch(/^node_gpu_hourly_cost\{/m);
});

test('the highest of billed over quoted is kept, and no later lease hides it', async () => {
  const { metrics, text } = await metricsOf();
  const { receipt } = await exampleReceipt(exampleLeases[0]!);
  const ratio = async () => /^gpulease_quote_vs_billed_ratio\{[^}]*\} (.*)$/m.exec(await text())?.[1];
  metrics.settled({ ...receipt, settlement: { ...receipt.settlement, servedSeconds: 0, claimed: '0' } });
  expect(await ratio()).toBeUndefined();
  metrics.settled(receipt);
  expect(await ratio()).toBe('1');
  metrics.settled({ ...receipt, settlement: { ...receipt.settlement, claimed: '2928' } });
  metrics.settled(receipt);
  expect(Number(await ratio())).toBeGreaterThan(1);
});
