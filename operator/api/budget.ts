/** GpuBudget: how much the leases of some namespaces may spend, in a limit that those who write leases cannot lift. */
import { z } from 'zod';
import { cel, conditions, type Kind, type KindDefinition, money, seconds, time } from './schema.ts';

/** Of the clock, in UTC: an hour, a day from midnight, a calendar month. The shortest first. */
export const budgetWindows = ['Hour', 'Day', 'Month'] as const;
export type BudgetWindow = (typeof budgetWindows)[number];

/** Most leases that one budget follows at a time: its status has an entry for each of which anything was billed. */
export const maxBudgetLeases = 2048;

/** Exact, whatever the token's decimals: at most 18 places. */
const exact = (description: string) => z.string().max(60).describe(`${description} Whole tokens, exact.`);

export const budgetSpec = z
  .object({
    namespaceSelector: z
      .object({ matchLabels: z.record(z.string().max(317), z.string().max(63)) })
      .optional()
      .describe(
        'Namespaces whose leases count. Default: all. Where several budgets select a namespace, all of them hold.',
      ),
    assetSymbol: z
      .string()
      .min(1)
      .max(12)
      .default('USDC')
      .describe(
        'Token that the limits are in. Leases that pay with another one are not counted in them: see otherAssets.',
      )
      .meta(cel({ rule: 'self == oldSelf', message: 'assetSymbol is immutable: make another GpuBudget' })),
    otherAssets: z
      .enum(['Deny', 'Allow'])
      .default('Deny')
      .describe(
        'Leases of these namespaces that pay with another token. Deny: they wait, unless another GpuBudget of theirs is in that token; nothing here knows what one token is worth in the other. Allow: they are not limited by amounts; maxConcurrentGpus counts them.',
      ),
    limits: z
      .array(
        z.object({
          window: z
            .enum(budgetWindows)
            .describe('Of the clock, in UTC: Hour begins with the hour, Day at midnight, Month on the first.'),
          amount: money('Most that is spent in one such window; 0: nothing is. Fees are included, gas is not.'),
        }),
      )
      .max(3)
      .default([])
      .meta({ 'x-kubernetes-list-type': 'map', 'x-kubernetes-list-map-keys': ['window'] })
      .describe(
        'A lease is opened, or topped up, only if what is spent, what open leases may still spend of their deposits, and the new deposit fit into the present window and into the next. So no window is ever overspent.',
      ),
    maxConcurrentGpus: z
      .int32()
      .min(0)
      .max(100000)
      .optional()
      .describe('Most GPUs leased at a time. Default: no limit.'),
    onExceeded: z
      .enum(['Alert', 'Deny', 'Drain'])
      .default('Deny')
      .describe(
        'Alert: people are told, and nothing is refused. Deny: no money is added, neither by new leases, which wait, nor by top-ups; running leases go on while their deposit pays, two hours at most. Drain: also, running leases are drained and ended when the budget has been exceeded for graceSeconds; where only maxConcurrentGpus is, the newest of them.',
      ),
    graceSeconds: seconds(0, 86400)
      .default(600)
      .describe('With Drain: for so long after it was exceeded leases may go on, and are left alone if it fits again.'),
    alertPercents: z
      .array(z.int32().min(1).max(100))
      .max(10)
      .default([50, 80, 100])
      .meta({ 'x-kubernetes-list-type': 'set' })
      .describe('An event on the GpuBudget when so many percent of a limit are spent, once a window.'),
  })
  .meta(
    cel({
      rule: 'size(self.limits) > 0 || has(self.maxConcurrentGpus)',
      message: 'a budget limits something: give limits or maxConcurrentGpus',
    }),
  );

export const budgetStatus = z.object({
  observedGeneration: z.int().min(0).optional(),
  conditions,
  windows: z
    .array(
      z.object({
        window: z.enum(budgetWindows),
        startedAt: time('When the window began.'),
        resetsAt: time('When the next one begins.'),
        spent: exact('Vouched for in this window: what may be billed for it, fees included.'),
        committed: z
          .string()
          .max(40)
          .describe('What open leases may still spend in it of what is deposited for them. Whole tokens, rounded up.'),
        limit: z.string().max(16).optional(),
        alertedPercent: z.int32().min(0).optional().describe('Highest of alertPercents that was told.'),
      }),
    )
    .max(3)
    .optional(),
  usedPercent: z.int32().min(0).optional().describe('Spent, of the limit that is nearest. Rounded up, at most 1000.'),
  gpus: z.int32().min(0).optional().describe('GPUs leased now.'),
  openLeases: z.int32().min(0).optional().describe('Leases for which money is deposited now.'),
  exceededSince: time('Since when more is spent, or leased, than the limits allow. Absent while they hold.').optional(),
  counted: z
    .array(
      z.object({
        uid: z.string().max(64),
        attempt: z.int32().min(1),
        seconds: z.int32().min(0),
      }),
    )
    .max(maxBudgetLeases)
    .optional()
    .describe('Up to which second each open lease is counted in spent: so that nothing is counted twice.'),
});

export type BudgetSpec = z.infer<typeof budgetSpec>;
export type BudgetStatus = z.infer<typeof budgetStatus>;
export type GpuBudget = Kind<BudgetSpec, BudgetStatus>;

const column = (window: BudgetWindow) => ({
  name: window,
  type: 'string' as const,
  path: `.status.windows[?(@.window=='${window}')].spent`,
  description: `Spent in this ${window.toLowerCase()}.`,
});

export const gpuBudget: KindDefinition = {
  kind: 'GpuBudget',
  plural: 'gpubudgets',
  scope: 'Cluster',
  shortNames: ['gbg'],
  description:
    'How much the leases of some namespaces may spend in an hour, a day or a month, and how many GPUs they may have.',
  spec: budgetSpec,
  status: budgetStatus,
  columns: [
    { name: 'Asset', type: 'string', path: '.spec.assetSymbol' },
    ...budgetWindows.map(column),
    { name: 'Used%', type: 'integer', path: '.status.usedPercent' },
    { name: 'GPUs', type: 'integer', path: '.status.gpus' },
    { name: 'Exceeded', type: 'string', path: ".status.conditions[?(@.type=='Exceeded')].status" },
    { name: 'Limits', type: 'string', path: '.spec.limits[*].amount', priority: 1 },
    { name: 'Policy', type: 'string', path: '.spec.onExceeded', priority: 1 },
    { name: 'Age', type: 'date', path: '.metadata.creationTimestamp' },
  ],
};
