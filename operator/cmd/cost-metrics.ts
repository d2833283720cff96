/**
 * What leased nodes cost, under the names and labels that OpenCost gives the costs of nodes, so that dashboards and queries
 * made for it show leased nodes too. Source: pkg/costmodel/metrics.go of github.com/opencost/opencost.
 *
 * A leased node has one price, that of its GPUs: processors and memory come with them and cost zero. Prices are in whole
 * tokens of the label `asset`; OpenCost itself knows one currency, so a sum over several assets means nothing.
 */
import { Gauge, type Registry } from 'prom-client';
import type { GpuOffer } from '../api/offer.ts';
import type { LeaseMetrics } from '../controllers/consumer/world.ts';
import type { LeaseRecord, QuoteRecord } from '../core/lease/observed.ts';
import { formatAmount } from '../core/money/amount.ts';
import { virtualNodeName } from '../core/node/names.ts';
import { quotedVsBilled } from '../core/receipt/ratio.ts';

/** OpenCost's, and ours at the end. */
const labelNames = ['instance', 'node', 'instance_type', 'region', 'provider_id', 'arch', 'asset'] as const;

interface Leased {
  readonly quote: QuoteRecord;
  readonly labels: Readonly<Record<(typeof labelNames)[number], string>>;
}

export function costMetrics(
  registry: Registry,
  records: () => ReadonlyMap<string, LeaseRecord>,
  offerOf: (name: string) => GpuOffer | undefined,
): Pick<LeaseMetrics, 'settled'> {
  const registers = [registry];

  function* leased(): Iterable<Leased> {
    for (const [uid, { lease, quote, startedAt, release, settled }] of records()) {
      if (!lease || !quote || startedAt === undefined || release || settled) continue;
      const node = virtualNodeName(lease.name, uid);
      const offer = offerOf(quote.offerName)?.status;
      const labels = {
        instance: node,
        node,
        instance_type: quote.signed.node.model,
        region: offer?.region ?? '',
        provider_id: `gpulease://${quote.providerName}/${quote.leaseId}`,
        arch: offer?.labels?.['kubernetes.io/arch'] ?? '',
        asset: quote.assetSymbol,
      };
      yield { quote, labels };
    }
  }
  const gauge = (name: string, help: string, value: (quote: QuoteRecord) => number) =>
    new Gauge({
      name,
      help,
      labelNames,
      registers,
      collect() {
        this.reset();
        for (const { quote, labels } of leased()) this.set(labels, value(quote));
      },
    });
  const tokens = ({ decimals }: QuoteRecord, units: bigint) => Number(formatAmount(units, decimals));
  const perGpu = (quote: QuoteRecord) => BigInt(quote.signed.quote.pricePerGpuHour);
  const gpus = ({ signed }: QuoteRecord) => signed.quote.gpus;

  gauge('node_gpu_hourly_cost', 'Price of one GPU of a leased node for an hour, in whole tokens of the asset.', (q) =>
    tokens(q, perGpu(q)),
  );
  gauge('node_gpu_count', 'GPUs of a leased node.', gpus);
  gauge('node_cpu_hourly_cost', 'Zero: the processors of a leased node come with its GPUs.', () => 0);
  gauge('node_ram_hourly_cost', 'Zero: the memory of a leased node comes with its GPUs.', () => 0);
  gauge('node_total_hourly_cost', 'Price of a leased node for an hour, in whole tokens of the asset.', (q) =>
    tokens(q, perGpu(q) * BigInt(gpus(q))),
  );
  gauge('kubecost_node_is_spot', '1: the provider may take the node back.', ({ signed }) => signed.quote.capacityType);

  const ratio = new Gauge({
    name: 'gpulease_quote_vs_billed_ratio',
    help: 'Billed, over what the quote says that the billed seconds cost: the highest of all leases that this process settled. Above 1 is a fault.',
    labelNames: ['provider', 'asset'],
    registers,
  });
  const highest = new Map<string, number>();
  return {
    settled(receipt) {
      const found = quotedVsBilled(receipt);
      if (found === undefined) return;
      const labels = { provider: receipt.providerName, asset: receipt.asset.symbol };
      const key = `${labels.provider}/${labels.asset}`;
      const most = Math.max(highest.get(key) ?? 0, found);
      highest.set(key, most);
      ratio.set(labels, most);
    },
  };
}
