/**
 * One replica of the gateway: the production provider side, and of its HTTP server as much as says what a call does. What
 * HTTP adds (tokens, limits, problem documents on the wire) has tests of its own.
 */

import type { IncomingMessage } from 'node:http';
import { PassThrough } from 'node:stream';
import type { Hex32 } from '../../operator/api/messages.ts';
import type { LeaseService } from '../../operator/controllers/provider/leases.ts';
import { createProvider, type Provider } from '../../operator/controllers/provider/provider.ts';
import { noCounters } from '../../operator/controllers/provider/world.ts';
import { admitConfig } from '../../operator/core/allocation/admit-config.ts';
import { type AdmittedPod, admitPod } from '../../operator/core/allocation/admit-pod.ts';
import { upstreamPath } from '../../operator/core/allocation/kube-path.ts';
import { tenantNamespace } from '../../operator/core/allocation/record.ts';
import { Refusal } from '../../operator/core/allocation/refusal.ts';
import { leaseIdLabel } from '../../operator/core/allocation/tenant.ts';
import { isRecord } from '../../operator/engine/errors.ts';
import { runAsLeader } from '../../operator/engine/leader.ts';
import type { Cluster, Log, RawRequest } from '../../operator/engine/types.ts';
import { problemOfError } from '../../operator/gateway/problem.ts';
import { replaceRunningPod } from '../../operator/gateway/replace-pod.ts';
import { problemOfAnswer, queryOf, readAll, targetOf, withQuery } from '../../operator/gateway/tenant-calls.ts';
import type { SimChain } from './chain.ts';
import { linesOf } from './cluster-link.ts';
import { addressOf } from './keys.ts';
import { notaryOf, providerChains } from './money.ts';
import type { Lines, Network, Place } from './network.ts';
import type { Party } from './timeline.ts';

export const providerAccount = addressOf('provider');
export const gatewayNamespace = 'gpulease-system';
export const quoteSeconds = 60;
/** Records of ended leases are kept this long: short, so that a run can see them go. */
export const retentionSeconds = 120;

export interface GatewayParts {
  readonly party: Party;
  readonly network: Network;
  readonly rpc: Place;
  readonly chain: SimChain;
  readonly cluster: Cluster;
  readonly log: Log;
  readonly replicas: number;
  readonly nonce: () => bigint;
  readonly onLost: () => void;
  /** Fires when the run is over. */
  readonly signal: AbortSignal;
}

export interface GatewayProcess {
  readonly party: Party;
  readonly provider: Provider;
  readonly service: LeaseService;
  kube(leaseId: Hex32, request: RawRequest): Promise<KubeAnswer>;
  follow(leaseId: Hex32): Promise<Lines>;
}

export type KubeAnswer =
  | { readonly status: number; readonly text: string; readonly lines?: undefined }
  | { readonly status: 200; readonly lines: Lines };

export function startGateway(parts: GatewayParts): GatewayProcess {
  const { party, network, cluster, log } = parts;
  const { clock } = party;
  const now = () => clock.now();
  const namespace = gatewayNamespace;
  const money = providerChains(
    { network, party, place: parts.rpc, chain: parts.chain, cluster, namespace, now },
    providerAccount,
  );
  const provider = createProvider({
    cluster,
    namespace,
    name: 'ams',
    version: '0',
    notary: notaryOf(providerAccount, parts.nonce),
    chains: money.chains,
    terms: { provider: providerAccount, maxUnpaid: '0.05', quoteSeconds },
    tenant: { deniedCidrs: [] },
    // It has several leases at once from the start.
    knownConsumers: [addressOf('wallet')],
    held: () => false,
    settings: {
      tickSeconds: 6,
      chainIntervalSeconds: 6,
      settleIntervalSeconds: 120,
      settleThreshold: '1',
      settlePatienceSeconds: 60,
      retentionSeconds,
    },
    now,
    clock,
    log,
    counters: noCounters,
  });
  const { signal } = parts;
  void money.connect(signal);
  void provider.watch(signal);
  // As the entry point does: whoever leads now must be alone, and what cannot lead is started again.
  if (parts.replicas === 1) provider.lead(signal).catch(parts.onLost);
  else {
    const leader = runAsLeader(
      {
        cluster,
        namespace,
        name: 'gpulease-gateway',
        identity: `${party.name}@${clock.now().getTime()}`,
        leaseDurationSeconds: 30,
        renewDeadlineSeconds: 20,
        retrySeconds: 6,
        clock,
        log,
        onLead: (leadSignal) => provider.lead(leadSignal),
      },
      signal,
    );
    leader.ended.then((how) => how === 'lost' && parts.onLost(), parts.onLost);
  }
  return {
    party,
    provider,
    service: provider.service,
    kube: (leaseId, request) => kube(provider, cluster, leaseId, request),
    follow: (leaseId) => follow(provider, party, leaseId),
  };
}

/** An answer that never arrived has no reader. */
const unreadMs = 10_000;

/** gateway/routes/follow.ts without HTTP: a line for each event, `null` for "as it was". */
function follow({ service }: Provider, party: Party, leaseId: Hex32): Promise<Lines> {
  const out = new PassThrough();
  const over = new AbortController();
  out.once('close', () => over.abort(new Error('the caller went away')));
  party.onCrash(() => out.destroy(new Error('the gateway died')));
  const cancel = party.clock.setTimeout(() => out.destroy(), unreadMs);
  const lines = linesOf(out as unknown as IncomingMessage);
  const read: Lines = {
    ...lines,
    onLine(handler) {
      cancel();
      lines.onLine(handler);
    },
  };
  return new Promise((resolve, reject) => {
    service
      .followAllocation(
        leaseId,
        (info) => {
          out.write(`${JSON.stringify(info ?? null)}\n`);
          resolve(read);
        },
        over.signal,
      )
      .then(
        () => out.end(),
        (error: unknown) => {
          cancel();
          out.destroy();
          reject(error);
        },
      );
  });
}

/** gateway/routes/kube.ts without HTTP: the same checks, the same admission, the same words. */
async function kube(provider: Provider, cluster: Cluster, leaseId: Hex32, request: RawRequest): Promise<KubeAnswer> {
  const { service } = provider;
  try {
    const [path = ''] = request.path.split('?');
    const target = targetOf(path.replace(/^kube\//, ''));
    const { method } = request;
    const query = queryOf(target, method, request.path);
    const record = await service.tenant(leaseId);
    const namespace = tenantNamespace(leaseId);
    const send = async (wanted: { method: string; path: string; body?: string }) => {
      const headers = { accept: 'application/json', 'content-type': 'application/json' };
      return cluster.raw({ ...wanted, headers }, { as: await service.token(leaseId) });
    };
    const body = (): unknown => {
      if (record.state !== 'Serving') throw new Refusal('LeaseEnded', 'nothing new can be started');
      const given: unknown = JSON.parse(String(request.body));
      if (target.kind === 'pods' && isRecord(given) && isRecord(given.spec)) delete given.spec.nodeName;
      return given;
    };
    const id = leaseIdLabel(leaseId);
    const admit = (pod: unknown, running: boolean): AdmittedPod =>
      admitPod(pod, { namespace, leaseId: id, nodeName: record.nodeName, room: record.room }, running);
    const admitted = (): object =>
      target.kind === 'pods'
        ? admit(body(), false)
        : admitConfig(target.kind === 'secrets' ? 'Secret' : 'ConfigMap', body(), { namespace, leaseId: id });
    const upstream = upstreamPath(namespace, target);
    let wanted: { method: string; path: string; body?: string };
    if (method === 'GET') wanted = { method, path: withQuery(upstream, query) };
    else if (method === 'POST') wanted = { method, path: upstream, body: JSON.stringify(admitted()) };
    else if (method === 'PUT' && target.kind === 'pods') {
      const result = await replaceRunningPod(target.name ?? '', body(), {
        send: (how, part, pod) =>
          send({
            method: how,
            path: part === undefined ? upstream : `${upstream}/${part}`,
            ...(pod && { body: JSON.stringify(pod) }),
          }),
        admit: (pod) => admit(pod, true),
        read: readAll,
        problemOf: (response, how) => problemOfAnswer(response, target, how),
      });
      if ('problem' in result) return problem(result.problem);
      return { status: 200, text: JSON.stringify(result.pod) };
    } else if (method === 'PUT') {
      wanted = { method, path: upstream, body: JSON.stringify(admitted()) };
    } else {
      const given = new Map(query);
      const uid = given.get('uid');
      wanted = {
        method,
        path: upstream,
        body: JSON.stringify({
          apiVersion: 'v1',
          kind: 'DeleteOptions',
          ...(given.has('gracePeriodSeconds') ? { gracePeriodSeconds: Number(given.get('gracePeriodSeconds')) } : {}),
          ...(uid === undefined ? {} : { preconditions: { uid } }),
        }),
      };
    }
    const response = await send(wanted);
    const status = response.statusCode ?? 502;
    if (status < 200 || status >= 300) return problem(await problemOfAnswer(response, target, method));
    if (/[?&]watch=true/.test(wanted.path)) return { status: 200, lines: linesOf(response) };
    return { status, text: await readAll(response, 1e7) };
  } catch (error) {
    return problem(problemOfError(error).problem);
  }
}

const problem = (told: { status: number }): KubeAnswer => ({ status: told.status, text: JSON.stringify(told) });
