/**
 * GpuOffer: what a provider rents out, at what price. Authored in the provider's cluster; the operator mirrors it into
 * the consumer's, named `<provider>-<offer>`.
 */
import { z } from 'zod';
import { gpuModelNames, partitionPattern } from './models.ts';
import { cel, conditions, type Kind, type KindDefinition, money, quantity, seconds, time } from './schema.ts';

export const capacityType = z.enum(['OnDemand', 'Spot']);
export type CapacityType = z.infer<typeof capacityType>;
export const interconnect = z.enum(['PCIe', 'NVLink']);

export const partition = z.string().max(32).regex(partitionPattern);

export const offerPrice = z
  .object({
    assetSymbol: z
      .string()
      .min(1)
      .max(12)
      .describe('Symbol of the token, e.g. USDC. The provider must accept it on one of its rails.'),
    perGpuHour: money('Price of one GPU for one hour, platform fee included: what the consumer pays.'),
  })
  .meta(cel({ rule: "quantity(self.perGpuHour).isGreaterThan(quantity('0'))", message: 'perGpuHour must be above 0' }));

export const offerSpec = z
  .object({
    providerName: z
      .string()
      .max(63)
      .optional()
      .describe(
        'Name of the GpuProvider that this offer came from. Set by the operator on mirrored offers; leave it out when authoring.',
      ),
    model: z
      .enum(gpuModelNames)
      .describe(
        'GPU model. Only nodes whose label nvidia.com/gpu.product is a product of this model are rented out; of a part, the model of the whole GPU.',
      ),
    partition: partition
      .optional()
      .describe(
        'What one GPU of this offer is. None, the default: a whole GPU. MIG-1g.10gb: a MIG device of that profile, of nodes with the MIG strategy single or mixed. TimeSliced or MPS: one of several turns on a GPU, shared with strangers and without memory of its own. Only such devices are rented out under it, and only leases that ask for just this get them.',
      ),
    interconnect: interconnect.default('PCIe').describe('How the GPUs of one node reach each other.'),
    capacityType: capacityType
      .default('OnDemand')
      .describe('OnDemand stays until the term ends; Spot may be taken back on notice.'),
    prices: z
      .array(offerPrice)
      .min(1)
      .max(4)
      .meta({ 'x-kubernetes-list-type': 'map', 'x-kubernetes-list-map-keys': ['assetSymbol'] })
      .describe('One price for each token that may be paid with.'),
    nodeSelector: z
      .record(z.string().max(317), z.string().max(63))
      .optional()
      .describe(
        "In the provider's cluster: labels of the nodes to rent out, beside gpulease.dev/offered. Default: all offered nodes of the model.",
      ),
    resourcesPerGpu: z
      .object({ cpu: quantity.optional(), memory: quantity.optional(), ephemeralStorage: quantity.optional() })
      .optional()
      .describe("CPU, memory and disk that come with each GPU. Default: the node's free share of each, by GPUs."),
    minDurationSeconds: seconds(60, 2592000).default(60).describe('Shortest lease; the smallest deposit pays for it.'),
    maxDurationSeconds: seconds(60, 2592000).default(2592000).describe('Longest lease.'),
  })
  .meta(
    cel({
      rule: 'self.minDurationSeconds <= self.maxDurationSeconds',
      message: 'minDurationSeconds must not be above maxDurationSeconds',
    }),
  );

export const offerStatus = z.object({
  observedGeneration: z.int().min(0).optional(),
  conditions,
  product: z.string().max(63).optional().describe('nvidia.com/gpu.product of the nodes.'),
  memoryMiB: z
    .int32()
    .min(0)
    .optional()
    .describe('Memory of one GPU; of a part, its own; of a turn on a GPU, its even share.'),
  region: z.string().max(63).optional(),
  zone: z.string().max(63).optional(),
  total: z.int32().min(0).optional().describe('GPUs rented out under this offer, free or not.'),
  available: z.int32().min(0).optional().describe('GPUs free now.'),
  largestAvailable: z
    .int32()
    .min(0)
    .optional()
    .describe('Most GPUs free on a single node: the largest lease that fits now.'),
  labels: z
    .record(z.string().max(317), z.string().max(63))
    .optional()
    .describe('Labels that a virtual node of this offer will carry.'),
  resourcesPerGpu: z
    .object({ cpu: quantity.optional(), memory: quantity.optional(), ephemeralStorage: quantity.optional() })
    .optional(),
  observedAt: time('When the provider last said so.').optional(),
});

export type OfferSpec = z.infer<typeof offerSpec>;
export type OfferStatus = z.infer<typeof offerStatus>;
export type GpuOffer = Kind<OfferSpec, OfferStatus>;

export const gpuOffer: KindDefinition = {
  kind: 'GpuOffer',
  plural: 'gpuoffers',
  scope: 'Cluster',
  shortNames: ['gof'],
  description:
    "What a provider rents out, at what price. Authored in the provider's cluster and mirrored, read-only, into the consumer's.",
  spec: offerSpec,
  status: offerStatus,
  selectableFields: ['.spec.providerName', '.spec.model'],
  columns: [
    { name: 'Model', type: 'string', path: '.spec.model' },
    { name: 'Price/GPU/h', type: 'string', path: '.spec.prices[0].perGpuHour' },
    { name: 'Asset', type: 'string', path: '.spec.prices[0].assetSymbol' },
    { name: 'Available', type: 'integer', path: '.status.available' },
    { name: 'Total', type: 'integer', path: '.status.total' },
    { name: 'Provider', type: 'string', path: '.spec.providerName' },
    { name: 'Region', type: 'string', path: '.status.region' },
    { name: 'Partition', type: 'string', path: '.spec.partition', priority: 1 },
    { name: 'Capacity', type: 'string', path: '.spec.capacityType', priority: 1 },
    { name: 'Prices', type: 'string', path: '.spec.prices[*].perGpuHour', priority: 1 },
    { name: 'Age', type: 'date', path: '.metadata.creationTimestamp' },
  ],
};
