/**
 * What a consumer may ask for: a quote, an allocation, a voucher kept, a release. Each call may be repeated, and may reach
 * another replica than the one before.
 */
import type {
  AccessRequest,
  AllocationInfo,
  LeaseRequest,
  OfferList,
  ProviderInfo,
  QuoteRequest,
  ReleaseReceipt,
  ServicesAnswer,
  ServicesRequest,
  SignedQuote,
  TenantProfile,
  VoucherReceipt,
  VoucherRequest,
} from '../../api/gateway.ts';
import { gpuResource } from '../../api/labels.ts';
import type { Address, Hex, Hex32, MessageDomain } from '../../api/messages.ts';
import { wholeGpu } from '../../api/models.ts';
import type { Controls } from '../../core/allocation/controls.ts';
import { hasLease } from '../../core/allocation/first-contact.ts';
import { judgeVoucher } from '../../core/allocation/grace.ts';
import { candidates, offerInfoOf, placeOn } from '../../core/allocation/inventory.ts';
import { checkEscrow } from '../../core/allocation/match.ts';
import type { NodeView } from '../../core/allocation/node-view.ts';
import { enter } from '../../core/allocation/plan.ts';
import {
  decideQuote,
  type QuoteTerms,
  quoteOfJson,
  quoteToJson,
  railFor,
  roomOfPromise,
  sameHex,
} from '../../core/allocation/quote.ts';
import {
  type EndingReason,
  endingReasons,
  type LeaseRecord,
  tenantNamespace,
  vouchedSeconds,
} from '../../core/allocation/record.ts';
import { Refusal } from '../../core/allocation/refusal.ts';
import { bytesText, resourcesOf } from '../../core/allocation/room.ts';
import type { TenantStorage } from '../../core/allocation/tenant.ts';
import type { TenantService, TunnelPlace } from '../../core/allocation/tenant-services.ts';
import { paidSeconds } from '../../core/money/escrow.ts';
import type { Log } from '../../engine/types.ts';
import type { Ledgers } from './ledgers.ts';
import type { Records } from './records.ts';
import type { Stock } from './stock.ts';
import type { TenantAddresses } from './tenant-addresses.ts';
import type { TenantServices } from './tenant-services.ts';
import type { Tenants } from './tenants.ts';
import type { Chains, Counters, EscrowChain, Notary } from './world.ts';

export interface LeaseServiceOptions {
  readonly name: string;
  readonly version: string;
  readonly notary: Notary;
  readonly chains: Chains;
  readonly stock: Stock;
  readonly records: Records;
  readonly ledgers: Ledgers;
  readonly tenants: Tenants;
  /** Absent: tenants reach no Services of their consumers. */
  readonly tenantServices?: TenantServices;
  readonly tenantAddresses: TenantAddresses;
  readonly terms: QuoteTerms;
  /** Consumers whose pods may use the hosts of this provider. */
  readonly trusted: (consumer: string) => boolean;
  /** What each lease that begins may store. Absent: nothing. */
  readonly storage?: TenantStorage;
  /** What the owner decided; while he holds there are no new quotes and no new leases. */
  readonly controls: () => Controls;
  /** Whether something of this account was ever settled here. */
  readonly known: (consumer: string) => boolean;
  /** Records of one account, as watched. */
  readonly recordsOf: (consumer: string) => readonly LeaseRecord[];
  readonly now: () => Date;
  readonly log: Log;
  readonly counters: Counters;
  /** Sees that the tenant is made; the record as it is then, or still Provisioning when that takes longer. */
  readonly provision: (record: LeaseRecord, signal?: AbortSignal) => Promise<LeaseRecord>;
  /** A record changed in a way that the controller should look at now. */
  readonly changed: (leaseId: Hex32) => void;
  /** The record as it was seen a moment ago; undefined when it was not. Good enough to let a tenant's calls through. */
  readonly cached: (leaseId: Hex32) => LeaseRecord | undefined;
}

export type LeaseService = ReturnType<typeof createLeaseService>;

/** Nodes that were not heard of for so long are not offered: what is free there cannot be known. */
const staleAfterSeconds = 600;

export function createLeaseService(options: LeaseServiceOptions) {
  const { notary, chains, stock, records, tenants, now, log, counters } = options;
  const nowSeconds = () => Math.floor(now().getTime() / 1000);

  function mustServe(consumer: string): void {
    const { mode, message, blocked } = options.controls();
    const why = message === undefined ? '' : `: ${message}`;
    if (blocked.has(consumer.toLowerCase()))
      throw new Refusal('Blocked', `this provider does not serve ${consumer}${why}`);
    if (mode !== 'Serve')
      throw new Refusal('Held', `this provider takes no new leases now${why}`, { retryAfterSeconds: 60 });
    if (!stock.synced || stock.staleSeconds > staleAfterSeconds) {
      throw new Refusal(503, 'the provider’s cluster does not answer: what is free is not known', {
        retryAfterSeconds: 5,
      });
    }
  }

  const oneAtATime = (consumer: string) =>
    new Refusal(
      'FirstContact',
      `${consumer} has a lease here and never paid: until something of it was settled, it gets one at a time`,
      { retryAfterSeconds: 30 },
    );

  /** Before anything is signed or stored; from what was watched. */
  function mustBeAlone(consumer: string, leaseId?: Hex32): void {
    if (!options.known(consumer) && hasLease({ records: options.recordsOf(consumer), leaseId }))
      throw oneAtATime(consumer);
  }

  /**
   * After the record was stored: of two replicas that store one at the same moment, at least one sees the other's. Both may; then
   * both are taken back, and one of them comes again.
   */
  async function mustHaveBeenAlone(record: LeaseRecord, signal?: AbortSignal): Promise<void> {
    const { leaseId } = record;
    const { consumer } = record.quote;
    if (options.known(consumer)) return;
    if (!hasLease({ records: await records.ofConsumer(consumer, signal), leaseId })) return;
    await records.update(
      leaseId,
      (latest) =>
        latest.state === 'Provisioning'
          ? enter({ ...latest, tornDown: true }, 'Ended', nowSeconds(), 'FirstContact')
          : latest,
      signal,
    );
    throw oneAtATime(consumer);
  }

  async function mustFind(leaseId: Hex32, signal?: AbortSignal): Promise<LeaseRecord> {
    const record = await records.get(leaseId, signal);
    if (record === undefined) throw new Refusal('LeaseNotFound', 'there is no allocation for this lease');
    return record;
  }

  const domainOf = (record: { chainId: number; escrow: string }): MessageDomain => ({
    chainId: record.chainId,
    escrow: record.escrow as Address,
  });

  function mustChain(chainId: number, escrow: string): EscrowChain {
    const chain = chains.chain(chainId, escrow);
    if (chain === undefined) throw new Refusal('RailNotAccepted', `contract ${escrow} on chain ${chainId} is not ours`);
    return chain;
  }

  /** Of a chain that has not answered since the start, nobody knows which tokens it takes. */
  function mustNotBeAwaited({ chainId, escrow }: { chainId: number; escrow: string }): void {
    if (chains.awaited(chainId, escrow))
      throw new Refusal(503, `chain ${chainId} does not answer yet: try again`, { retryAfterSeconds: 2 });
  }

  async function readEscrow(chain: EscrowChain, leaseId: Hex32, signal?: AbortSignal) {
    try {
      const [escrow] = await chain.leases([leaseId], signal);
      return escrow;
    } catch (error) {
      signal?.throwIfAborted();
      log.warn({ chainId: chain.chainId, error: String(error) }, 'the chain does not answer');
      throw new Refusal(503, `chain ${chain.chainId} does not answer: try again`, { retryAfterSeconds: 2 });
    }
  }

  async function allocate(request: LeaseRequest, signal?: AbortSignal): Promise<AllocationInfo> {
    const quote = quoteOfJson(request.quote);
    const domain = domainOf(request);
    if (!sameHex(quote.provider, notary.address)) {
      throw new Refusal('Unauthorized', `the quote is of provider ${quote.provider}, not of ${notary.address}`);
    }
    const rail = railFor(chains.rails(), { ...request, token: quote.token });
    if (rail === undefined) {
      mustNotBeAwaited(request);
      throw new Refusal('RailNotAccepted', 'the quote names a token, contract or chain that is not accepted here');
    }
    if (!(await notary.verifyQuote(domain, { message: quote, signature: request.signature as Hex }))) {
      throw new Refusal('Unauthorized', 'the signature of the quote is not ours');
    }
    if (!sameHex(notary.hashJson(request.node), quote.specHash)) {
      throw new Refusal('EscrowMismatch', 'node is not what the quote promised (specHash)');
    }
    const leaseId = notary.leaseIdOf(quote.consumer, quote.leaseRef);
    const chain = mustChain(request.chainId, request.escrow);

    const existing = await records.get(leaseId, signal);
    if (existing !== undefined && !mayBeRevived(existing)) {
      if (existing.release !== undefined || existing.state === 'Ended') {
        throw new Refusal('LeaseEnded', endingMessage(existing));
      }
      return existing.state === 'Provisioning' ? describe(await settleIn(existing, signal)) : describe(existing);
    }

    const escrow = await readEscrow(chain, leaseId, signal);
    const mismatch = checkEscrow(quote, notary.hashQuote(domain, quote), escrow, nowSeconds());
    if (mismatch !== undefined || escrow === undefined) {
      throw new Refusal(mismatch?.reason ?? 'EscrowNotFound', mismatch?.detail ?? 'no escrow', {
        retryAfterSeconds: 1,
      });
    }
    mustServe(quote.consumer);
    mustBeAlone(quote.consumer, leaseId);
    const offer = stock.offer(request.node.offerName);
    const room = roomOfPromise(request.node, offer?.perGpu.pods ?? 1);
    // Where something is set aside for it already, its pods may be running: the record was lost, and is made anew.
    const held = stock.holderOf(leaseId);
    const first = offer && candidates(offer, room)[0];
    const place = held ? { nodeName: held.node, device: held.device } : first ? placeOn(first) : { nodeName: '' };
    const fresh: LeaseRecord = {
      version: 1,
      leaseId,
      chainId: request.chainId,
      escrow: chain.escrow,
      quote: request.quote,
      quoteSignature: request.signature as Hex,
      node: request.node,
      signer: escrow.signer,
      openedAt: escrow.openedAt,
      endsAt: escrow.endsAt,
      room,
      ...(options.trusted(quote.consumer) ? { tenantProfile: 'trusted' as const } : {}),
      ...(options.storage === undefined ? {} : { storage: options.storage }),
      ...place,
      state: 'Provisioning',
      createdAt: now().toISOString(),
      paidSeconds: paidSeconds(escrow),
    };
    if (existing !== undefined && fresh.nodeName === '') throw exhausted(existing);
    if (existing === undefined) await records.create(fresh, signal);
    else await records.update(leaseId, (record) => (mayBeRevived(record) ? fresh : record), signal);
    await mustHaveBeenAlone(fresh, signal);
    return describe(await settleIn(await mustFind(leaseId, signal), signal));
  }

  /** Refused for want of room, and nothing signed about it yet: room may have come back. */
  const mayBeRevived = (record: LeaseRecord): boolean =>
    record.state === 'Ended' &&
    (record.reason === 'CapacityExhausted' || record.reason === 'FirstContact') &&
    record.release === undefined;

  async function settleIn(record: LeaseRecord, signal?: AbortSignal): Promise<LeaseRecord> {
    const settled = await options.provision(record, signal);
    options.changed(record.leaseId);
    if (settled.state === 'Ended' && settled.reason === 'CapacityExhausted') {
      throw exhausted(record);
    }
    return settled;
  }

  const exhausted = (record: LeaseRecord) =>
    new Refusal(
      'CapacityExhausted',
      `the GPUs of offer ${record.node.offerName} are gone: ask again later, or release the lease to be refunded`,
    );

  const endingMessage = (record: LeaseRecord): string =>
    record.reason === undefined ? 'this lease has ended' : `this lease has ended: ${endingReasons[record.reason]}`;

  function describe(record: LeaseRecord): AllocationInfo {
    // A replica that has just started has not heard of any node: that is no news of this one.
    if (!stock.synced) {
      throw new Refusal(503, 'the provider’s cluster has not answered yet: try again', { retryAfterSeconds: 1 });
    }
    const node = stock.node(record.nodeName);
    const health = healthOf(record, node);
    return {
      leaseId: record.leaseId,
      // While it is going down it serves no more: "Ended" is said only when nothing is left.
      state: record.state === 'Ending' ? 'Suspended' : record.state,
      ...(record.state === 'Ending'
        ? { reason: 'Ending' }
        : record.reason === undefined
          ? {}
          : { reason: record.reason }),
      ...(record.reason === undefined ? {} : { message: endingReasons[record.reason] }),
      gpus: record.room.gpus,
      resources: resourcesOf(record.room),
      pods: record.room.pods,
      nodeLabels: deviceOf(record, node)?.labels ?? {},
      nodeInfo: node?.nodeInfo ?? {},
      ...health,
      tenantProfile: profileNow(record),
      ...(record.storage === undefined ? {} : { storage: bytesText(record.storage.bytes) }),
      vouchedSeconds: vouchedSeconds(record),
      graceSeconds: record.quote.graceSeconds,
      ...(record.servingSince === undefined ? {} : { servingSince: record.servingSince }),
      ...(record.leaveBy === undefined ? {} : { leaveBy: new Date(record.leaveBy * 1000).toISOString() }),
    };
  }

  const deviceOf = (record: LeaseRecord, node: NodeView | undefined) =>
    node?.devices.find(({ resource }) => resource === (record.device ?? gpuResource));

  /** Trust that was taken back holds at once; trust given later holds for later leases, whose tenant is made for it. */
  const profileNow = (record: LeaseRecord): TenantProfile =>
    record.tenantProfile === 'trusted' && options.trusted(record.quote.consumer) ? 'trusted' : 'baseline';

  function healthOf(record: LeaseRecord, node: NodeView | undefined): { nodeReady: boolean; nodeMessage?: string } {
    if (node === undefined) return { nodeReady: false, nodeMessage: 'the node is gone from the provider’s cluster' };
    if (!node.ready) return { nodeReady: false, nodeMessage: node.notReadyBecause };
    // Which GPU is broken cannot be told from counts; that a lease's are cannot all work, sometimes can.
    const healthy = node.counts[record.device ?? gpuResource] ?? 0;
    if (healthy < record.room.gpus) {
      return { nodeReady: false, nodeMessage: `only ${healthy} GPUs of the node are healthy` };
    }
    // Partitioned anew under the lease: what is there now is something else than what was promised and is paid.
    const device = deviceOf(record, node);
    const promised = record.node.partition ?? wholeGpu;
    if (device !== undefined && device.partition !== promised) {
      return { nodeReady: false, nodeMessage: `the GPUs of the node are ${device.partition} now, not ${promised}` };
    }
    return { nodeReady: true };
  }

  async function tenant(leaseId: Hex32, signal?: AbortSignal): Promise<LeaseRecord> {
    const seen = options.cached(leaseId);
    const record = seen?.state === 'Serving' ? seen : await mustFind(leaseId, signal);
    if (record.state === 'Ended' || record.tornDown) throw new Refusal('LeaseEnded', endingMessage(record));
    if (record.state === 'Provisioning') {
      throw new Refusal(503, 'the tenant is being made', { retryAfterSeconds: 1 });
    }
    return { ...record, tenantProfile: profileNow(record) };
  }

  async function mustReach(leaseId: Hex32, signal?: AbortSignal) {
    const { tenantServices } = options;
    if (!tenantServices)
      throw new Refusal('ServicesNotOffered', 'this provider carries no connections to Services of its consumers');
    const record = await tenant(leaseId, signal);
    if (record.state !== 'Serving') throw new Refusal('LeaseEnded', endingMessage(record));
    return { tenantServices, record };
  }

  return {
    info(): ProviderInfo {
      const rails = chains.rails();
      return {
        address: notary.address,
        networkId: rails[0]!.networkId,
        name: options.name,
        version: options.version,
        rails: rails.map(({ chainId, escrow, token, assetSymbol, decimals }) => ({
          chainId,
          escrow,
          token,
          assetSymbol,
          decimals,
        })),
        now: now().toISOString(),
      };
    },

    offers(): OfferList {
      if (!stock.synced) {
        throw new Refusal(503, 'the provider’s cluster has not answered yet: try again', { retryAfterSeconds: 1 });
      }
      const held = options.controls().mode !== 'Serve' || stock.staleSeconds > staleAfterSeconds;
      const symbols = new Set(chains.rails().map((rail) => rail.assetSymbol));
      const offers = stock
        .all()
        .filter((offer) => offer.spec.prices.some((price) => symbols.has(price.assetSymbol)))
        .slice(0, 200)
        .map(offerInfoOf)
        .map((offer) => (held ? { ...offer, available: 0, largestAvailable: 0 } : offer));
      return { offers, observedAt: new Date(now().getTime() - Math.floor(stock.staleSeconds) * 1000).toISOString() };
    },

    async quote(request: QuoteRequest, _signal?: AbortSignal): Promise<SignedQuote> {
      mustServe(request.consumer);
      mustBeAlone(request.consumer);
      const offer = stock.offer(request.offerName);
      if (offer === undefined) throw new Refusal('OfferNotFound', `there is no offer "${request.offerName}"`);
      const rail = railFor(chains.rails(), request);
      if (rail === undefined) {
        mustNotBeAwaited(request);
        const accepted = chains
          .rails()
          .map((one) => `${one.assetSymbol} on chain ${one.chainId}`)
          .join(', ');
        throw new Refusal(
          'RailNotAccepted',
          `this token, contract or chain is not accepted here; accepted: ${accepted}`,
        );
      }
      const { quote, node } = decideQuote(
        request,
        offer,
        rail,
        options.terms,
        nowSeconds(),
        notary.quoteNonce(),
        (promised) => notary.hashJson(promised),
      );
      const domain = { chainId: rail.chainId, escrow: rail.escrow };
      const signature = await notary.signQuote(domain, quote);
      counters.count('gpulease_gateway_quotes_total', { offer: offer.name });
      return { ...domain, quote: quoteToJson(quote), signature, node };
    },

    allocate,

    consumerOf: (leaseId: Hex32): string | undefined => options.cached(leaseId)?.quote.consumer.toLowerCase(),

    /** The parts of an Access request that do not need this process' own memory. Throws a Refusal. */
    async checkAccess(leaseId: Hex32, request: AccessRequest, signal?: AbortSignal): Promise<void> {
      const record = await mustFind(leaseId, signal);
      if (!sameHex(request.provider, notary.address)) {
        throw new Refusal('Unauthorized', `the access is for provider ${request.provider}, this is ${notary.address}`);
      }
      const message = {
        provider: request.provider as Address,
        audienceUrl: request.audienceUrl,
        leaseId: record.leaseId,
        nonce: request.nonce as Hex32,
        expiresAt: request.expiresAt,
      };
      if (!notary.verifyAccess(domainOf(record), { message, signature: request.signature as Hex }, record.signer)) {
        throw new Refusal('Unauthorized', 'the access is not signed by the session key of this lease');
      }
    },

    async allocation(leaseId: Hex32, signal?: AbortSignal): Promise<AllocationInfo> {
      return describe(await mustFind(leaseId, signal));
    },

    /** As it was seen a moment ago. */
    allocationSeen(leaseId: Hex32): AllocationInfo | undefined {
      const record = stock.synced ? options.cached(leaseId) : undefined;
      return record && describe(record);
    },

    async voucher(leaseId: Hex32, request: VoucherRequest, signal?: AbortSignal): Promise<VoucherReceipt> {
      const { servedSeconds, last } = request;
      const message = { leaseId, servedSeconds, last };
      const signature = request.signature as Hex;
      const isSigned = (record: LeaseRecord) =>
        notary.verifyVoucher(domainOf(record), { message, signature }, record.signer);
      // Contract and key of a lease do not change; only where they were not seen yet the record itself is read for them.
      const seen = options.cached(leaseId);
      if (!(seen && isSigned(seen)) && !isSigned(await mustFind(leaseId, signal))) {
        throw new Refusal('VoucherRefused', 'the voucher is not signed by the session key of this lease');
      }
      const stored = await records.update(
        leaseId,
        (latest) => {
          const verdict = judgeVoucher(
            message,
            latest.voucher,
            { openedAt: latest.openedAt, maxSeconds: latest.quote.maxSeconds },
            nowSeconds(),
          );
          if (verdict.take) {
            return { ...latest, voucher: { servedSeconds: message.servedSeconds, last: message.last, signature } };
          }
          if (verdict.refused !== undefined)
            throw new Refusal('VoucherRefused', `the voucher is refused: ${verdict.refused}`);
          return latest;
        },
        signal,
      );
      if (stored === undefined) throw new Refusal('LeaseNotFound', 'there is no allocation for this lease');
      counters.count('gpulease_gateway_vouchers_total');
      if (stored.voucher?.last) options.changed(leaseId);
      return { servedSeconds: vouchedSeconds(stored) };
    },

    async release(leaseId: Hex32, signal?: AbortSignal): Promise<ReleaseReceipt> {
      const reason: EndingReason = 'Released';
      const stored = await records.update(
        leaseId,
        (latest) => {
          if (latest.state === 'Provisioning' || latest.state === 'Serving')
            return enter(latest, 'Ending', nowSeconds(), reason);
          if (latest.state === 'Suspended' && latest.tornDown) return enter(latest, 'Ended', nowSeconds());
          return latest;
        },
        signal,
      );
      if (stored === undefined) throw new Refusal('LeaseNotFound', 'there is no allocation for this lease');
      options.changed(leaseId);
      if (stored.state !== 'Ended') return { state: 'Ending' };
      if (stored.release !== undefined) return { state: 'Ended', ...stored.release };
      // Stored before it is told, so that two replicas, or one asked twice, tell the same.
      const servedSeconds = vouchedSeconds(stored);
      const signature = await notary.signRelease(domainOf(stored), { leaseId: stored.leaseId, servedSeconds });
      const signed = await records.update(
        leaseId,
        (latest) =>
          latest.release === undefined && latest.state === 'Ended'
            ? { ...latest, release: { servedSeconds, signature } }
            : latest,
        signal,
      );
      return signed?.release === undefined ? { state: 'Ending' } : { state: 'Ended', ...signed.release };
    },

    /** The real node, as far as the tenant may see it: what a Node object of exactly this lease would say. */
    async node(leaseId: Hex32, signal?: AbortSignal): Promise<object> {
      const info = describe(await mustFind(leaseId, signal));
      const amounts = {
        cpu: info.resources.cpu,
        memory: info.resources.memory,
        'ephemeral-storage': info.resources.ephemeralStorage,
        pods: String(info.pods),
        [gpuResource]: String(info.gpus),
      };
      return {
        apiVersion: 'v1',
        kind: 'Node',
        metadata: { name: tenantNamespace(leaseId), labels: info.nodeLabels },
        status: {
          capacity: amounts,
          allocatable: amounts,
          conditions: [
            {
              type: 'Ready',
              status: info.nodeReady ? 'True' : 'False',
              reason: info.nodeReady ? 'KubeletReady' : 'NodeNotReady',
              message: info.nodeMessage ?? '',
            },
          ],
          nodeInfo: info.nodeInfo,
        },
      };
    },

    /** For the proxy: the tenant, when it may be talked to. */
    tenant,

    async putServices(leaseId: Hex32, request: ServicesRequest, signal?: AbortSignal): Promise<ServicesAnswer> {
      const { tenantServices, record } = await mustReach(leaseId, signal);
      return tenantServices.put(record, request, signal);
    },
    async listServices(leaseId: Hex32, signal?: AbortSignal): Promise<readonly TenantService[]> {
      const { tenantServices, record } = await mustReach(leaseId, signal);
      return tenantServices.list(record, signal);
    },
    async pointServices(leaseId: Hex32, place: TunnelPlace, signal?: AbortSignal): Promise<void> {
      const { tenantServices, record } = await mustReach(leaseId, signal);
      await tenantServices.point(record, place, signal);
    },
    async unpointServices(leaseId: Hex32, holder: string, signal?: AbortSignal): Promise<void> {
      // A tenant that is going takes its Services along.
      const record = await records.get(leaseId, signal);
      if (record?.state === 'Serving') await options.tenantServices?.unpoint(record, holder, signal);
    },
    isTenantPod: (leaseId: Hex32, address: string, signal?: AbortSignal): Promise<boolean> =>
      options.tenantAddresses.has(tenantNamespace(leaseId), address, signal),

    token: (leaseId: Hex32, signal?: AbortSignal) => tenants.token(leaseId, signal),
    forgetToken: (leaseId: Hex32) => tenants.forgetToken(leaseId),
  };
}
