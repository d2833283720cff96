/** All that the lease controller may touch. */
import type { GpuBudget } from '../../api/budget.ts';
import type { GpuLease } from '../../api/lease.ts';
import type { GpuOffer } from '../../api/offer.ts';
import type { GpuProvider } from '../../api/provider.ts';
import type { Receipt } from '../../api/receipt.ts';
import type { AllocationFact, Refused, Settings } from '../../core/lease/observed.ts';
import type { Cluster, EventRecorder, Informer, KubeObject, Log } from '../../engine/types.ts';
import type { Gateways, LeaseMoney, LeaseNodes } from './ports.ts';
import type { ProviderBook } from './provider-book.ts';
import type { Receipts } from './receipts.ts';
import type { LeaseRecords } from './records.ts';

export interface LeaseWorld {
  readonly cluster: Cluster;
  readonly clusterUid: string;
  readonly leases: Informer<GpuLease>;
  readonly offers: Informer<GpuOffer>;
  readonly providers: Informer<GpuProvider>;
  readonly budgets: Informer<GpuBudget>;
  /** For their labels. */
  readonly namespaces: Informer<KubeObject>;
  readonly providerBook: ProviderBook;
  readonly records: LeaseRecords;
  readonly receipts: Receipts;
  readonly gateways: Gateways;
  readonly money: LeaseMoney;
  readonly nodes: LeaseNodes;
  readonly events: EventRecorder;
  readonly log: Log;
  readonly now: () => Date;
  readonly settings: Settings;
  /** What was learnt in this process and may be forgotten: by UID of the lease. */
  readonly hints: Map<string, Hints>;
  readonly metrics?: LeaseMetrics;
  /** Money was committed: budgets show it. */
  readonly onCommitted?: () => void;
}

/** Answers that are worth showing, but that nothing depends on: a restart asks again. */
export interface Hints {
  refusals: { readonly providerName: string; readonly reason: string; readonly message: string }[];
  /** Last answer of a simulation that refused, by intent. */
  refusedTx: Record<string, Refused>;
  /** Why the gateway did not allocate. */
  allocation?: AllocationFact;
  selection?: NonNullable<GpuLease['status']>['selection'];
  /** The escrow whose opening was told as an event. */
  openedTold?: string;
  vouchers: number;
}

export interface LeaseMetrics {
  vouched(lease: GpuLease, provider: string, seconds: number): void;
  ready(lease: GpuLease, seconds: number): void;
  /** Reasons of leases that are not Ready. */
  pending(uid: string, reason: string | undefined): void;
  /** Its escrow is settled, and this is what came of it. */
  settled(receipt: Receipt): void;
  /** Something of ours was found that no lease stands behind. */
  orphan(kind: 'lease' | 'node' | 'escrow' | 'pod'): void;
}
