/**
 * From the consumer to a pod of its tenant: CONNECT POD:PORT on a tunnel of the lease.
 *
 * The pod is looked up anew for each connection, with the tenant's own account: an address that was remembered could be
 * another tenant's by now. Nothing but a pod's address is ever dialled.
 */
import type { IncomingHttpHeaders, ServerHttp2Session, ServerHttp2Stream } from 'node:http2';
import { isIP, type Socket } from 'node:net';
import type { Hex32 } from '../../api/messages.ts';
import { isObjectName } from '../../core/allocation/kube-path.ts';
import { tenantNamespace } from '../../core/allocation/record.ts';
import { Refusal } from '../../core/allocation/refusal.ts';
import { dial } from '../../wire/dial.ts';
import { join } from '../../wire/halves.ts';
import { systemTiming } from '../../wire/timing.ts';
import { problemOfError } from '../problem.ts';
import type { GatewayLog, GatewayService, Upstream } from '../service.ts';
import { readAll } from '../tenant-calls.ts';
import type { Budget } from './budget.ts';

export interface ForwardOptions {
  readonly service: GatewayService;
  readonly upstream: Upstream;
  readonly budget: Budget;
  readonly log: GatewayLog;
}

const lookupSeconds = 10;
const connectSeconds = 10;
const maxPodBytes = 4 * 1024 * 1024;

export function serveForward(session: ServerHttp2Session, leaseId: Hex32, options: ForwardOptions): void {
  const { budget, log } = options;
  session.on('stream', (stream, headers) => {
    // An error is told by 'close', which follows.
    stream.on('error', () => undefined);
    if (!budget.take(leaseId)) return answer(stream, 429);
    stream.once('close', () => budget.give(leaseId));
    carry(stream, headers, leaseId, options).catch((error: unknown) => {
      const { problem, ours } = problemOfError(error);
      if (ours) log.error({ leaseId, error: messageOf(error) }, 'a connection to a pod could not be opened');
      answer(stream, problem.status);
    });
  });
}

async function carry(
  stream: ServerHttp2Stream,
  headers: IncomingHttpHeaders,
  leaseId: Hex32,
  options: ForwardOptions,
): Promise<void> {
  const { service, log } = options;
  const to = targetOf(headers);
  const gone = new AbortController();
  stream.once('close', () => gone.abort(new Error('the caller went away')));
  const record = await service.tenant(leaseId, gone.signal);
  if (record.state !== 'Serving') throw new Refusal('LeaseEnded', 'the lease is not served');
  const address = await addressOf(to.pod, leaseId, options, gone.signal);
  let socket: Socket;
  try {
    socket = await dial(address, to.port, { withinSeconds: connectSeconds, clock: systemTiming, signal: gone.signal });
  } catch (error) {
    // The pod's own no, or its silence: no fault of ours.
    log.debug({ leaseId, pod: to.pod, port: to.port, error: messageOf(error) }, 'a pod did not take a connection');
    throw new Refusal(502, 'the pod did not take the connection');
  }
  if (stream.destroyed) {
    socket.destroy();
    return;
  }
  stream.respond({ ':status': 200 });
  join(stream, socket);
}

function targetOf(headers: IncomingHttpHeaders): { pod: string; port: number } {
  const authority = headers[':authority'];
  const match = /^([a-z0-9][-a-z0-9.]{0,252}):([1-9][0-9]{0,4})$/.exec(authority ?? '');
  const [, pod = '', port = ''] = match ?? [];
  if (headers[':method'] !== 'CONNECT' || !isObjectName(pod) || Number(port) > 65_535)
    throw new Refusal(400, 'a stream of this tunnel is CONNECT POD:PORT');
  return { pod, port: Number(port) };
}

async function addressOf(
  pod: string,
  leaseId: Hex32,
  { service, upstream }: ForwardOptions,
  signal: AbortSignal,
): Promise<string> {
  const ask = async () =>
    upstream.raw(
      {
        method: 'GET',
        path: `/api/v1/namespaces/${tenantNamespace(leaseId)}/pods/${pod}`,
        headers: { accept: 'application/json' },
        timeoutSeconds: lookupSeconds,
      },
      { as: await service.token(leaseId, signal) },
      signal,
    );
  let response = await ask();
  if (response.statusCode === 401) {
    response.resume();
    service.forgetToken(leaseId);
    response = await ask();
  }
  const text = await readAll(response, maxPodBytes);
  if (response.statusCode === 404) throw new Refusal(404, 'there is no such pod');
  if (response.statusCode !== 200) throw new Refusal(503, 'the pod could not be looked up: try again');
  const { spec, status } = JSON.parse(text) as {
    spec?: { hostNetwork?: boolean };
    status?: { phase?: string; podIP?: string };
  };
  // Admission lets no such pod through. If one is there all the same, its address is a machine's.
  if (spec?.hostNetwork === true) throw new Refusal(403, 'the pod is on the network of its host');
  const address = status?.podIP ?? '';
  if (isIP(address) === 0 || status?.phase === 'Succeeded' || status?.phase === 'Failed')
    throw new Refusal(409, 'the pod has no address: it has not started, or it has ended');
  return address;
}

function answer(stream: ServerHttp2Stream, status: number): void {
  if (stream.destroyed || stream.headersSent) return;
  stream.respond({ ':status': status }, { endStream: true });
  stream.resume();
}

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));
