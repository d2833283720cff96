/**
 * One lease at its gateway. A bearer token, minutes long, is fetched against an Access signature of the session key, renewed
 * before it ends, and once more when the gateway no longer takes it (it restarted with another key, clocks differ).
 */
import { randomBytes } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import {
  type AccessRequest,
  type AllocationInfo,
  accessToken,
  allocationInfo,
  maxBodyBytes,
  type ReleaseReceipt,
  releaseReceipt,
  type VoucherReceipt,
  type VoucherRequest,
  voucherReceipt,
} from '../../api/gateway.ts';
import type { Access, Hex32 } from '../../api/messages.ts';
import { readBody } from '../../engine/http.ts';
import { readLines } from '../../engine/lines.ts';
import { answerOf, refusalOf } from './answers.ts';
import { GatewayRefusal, UnknownOutcomeError } from './errors.ts';
import type { CallJson, LeaseAccess } from './gateway-client.ts';
import type { HttpClient, HttpRequest, Upgraded } from './http.ts';

export interface LeaseConnection {
  readonly leaseId: Hex32;
  allocation(signal?: AbortSignal): Promise<AllocationInfo>;
  /**
   * Tells how it is now, and whenever it has changed; `undefined` every `allocationBeatSeconds` that it has not. Resolves where the
   * gateway ends it, after minutes, and after the first where it can only be asked. Throws as `allocation` does.
   */
  follow(heard: (info: AllocationInfo | undefined) => void, signal: AbortSignal): Promise<void>;
  voucher(voucher: VoucherRequest, signal?: AbortSignal): Promise<VoucherReceipt>;
  /** Serve no longer. `state: Ending` until nothing of the tenant runs; call again. */
  release(signal?: AbortSignal): Promise<ReleaseReceipt>;
  /** `path` under the lease, e.g. `kube/pods?watch=true`. The answer as a stream; no status is an error. */
  raw(request: HttpRequest, signal?: AbortSignal): Promise<IncomingMessage>;
  /** Repeats an HTTP upgrade, e.g. to `kube/pods/NAME/exec?…`. */
  upgrade(request: HttpRequest, signal?: AbortSignal): Promise<Upgraded>;
}

/** An Access message is good for this long; gateways accept five minutes at most. */
const accessSeconds = 120;
/** A token is renewed when this much of it is left, or a fifth of its life, whichever is less. */
const renewAheadSeconds = 120;

interface Token {
  readonly value: string;
  readonly renewAt: number;
}

export function connectLease(
  options: LeaseAccess & { url: string; http: HttpClient; call: CallJson; timeoutSeconds: number },
): LeaseConnection {
  const { leaseId, http, call, now } = options;
  const base = `/v1/leases/${leaseId}`;
  const nowSeconds = () => Math.floor(now().getTime() / 1000);
  let current: Token | undefined;
  let fetching: Promise<Token> | undefined;

  async function fetchToken(): Promise<Token> {
    const askedAt = nowSeconds();
    const access: Access = {
      provider: options.provider,
      audienceUrl: options.url,
      leaseId,
      nonce: `0x${randomBytes(32).toString('hex')}`,
      expiresAt: askedAt + accessSeconds,
    };
    const { leaseId: _, ...sent } = access;
    const request: AccessRequest = { ...sent, signature: await options.signAccess(access) };
    // On nobody's signal: all callers wait for the same token.
    const { token, expiresAt } = await call('POST', `${base}/token`, accessToken, request, {});
    const life = Math.max(0, expiresAt - askedAt);
    return { value: token, renewAt: expiresAt - Math.min(renewAheadSeconds, life / 5) };
  }

  async function token(): Promise<Token> {
    if (current && nowSeconds() < current.renewAt) return current;
    fetching ??= fetchToken().finally(() => {
      fetching = undefined;
    });
    current = await fetching;
    return current;
  }

  /** `attempt` is repeated once with a fresh token when `refused` says that the first was not taken: then nothing happened. */
  async function authorized<T>(
    attempt: (headers: Record<string, string>) => Promise<T>,
    refused: (value: T) => boolean,
  ) {
    const used = await token();
    const first = await attempt({ Authorization: `Bearer ${used.value}` });
    if (!refused(first)) return first;
    if (current === used) current = undefined;
    return attempt({ Authorization: `Bearer ${(await token()).value}` });
  }

  async function authorizedCall<T>(
    method: string,
    path: string,
    schema: Parameters<CallJson>[2],
    body: unknown,
    signal?: AbortSignal,
  ) {
    type Outcome = { value: T } | { refusal: GatewayRefusal };
    const outcome = await authorized<Outcome>(
      async (headers) => {
        try {
          return { value: (await call(method, path, schema, body, headers, signal)) as T };
        } catch (error) {
          if (error instanceof GatewayRefusal && error.status === 401) return { refusal: error };
          throw error;
        }
      },
      (result) => 'refusal' in result,
    );
    if ('refusal' in outcome) throw outcome.refusal;
    return outcome.value;
  }

  const under = (request: HttpRequest, headers: Record<string, string>): HttpRequest => ({
    ...request,
    path: `${base}/${request.path}`,
    headers: { ...request.headers, ...headers },
  });

  async function follow(heard: (info: AllocationInfo | undefined) => void, signal: AbortSignal): Promise<void> {
    const what = `GET ${base}`;
    const response = await authorized(
      (headers) =>
        http.send({ method: 'GET', path: base, headers: { ...headers, Accept: 'text/event-stream' } }, 'watch', signal),
      (answer) => answer.statusCode === 401 && discard(answer),
    );
    const status = response.statusCode ?? 0;
    const type = String(response.headers['content-type'] ?? '');
    if (status === 200 && type.startsWith('text/event-stream')) {
      // Server-sent events (WHATWG HTML, 9.2), as gateways send them: one line of data each, and comments.
      await readLines(response, { what, longestBytes: maxBodyBytes }, (line) => {
        if (line.startsWith(':')) heard(undefined);
        else if (line.startsWith('data: ')) heard(answerOf(allocationInfo, Buffer.from(line.slice(6)), what));
      });
      if (!response.complete) throw new UnknownOutcomeError(`${what}: the answer broke off`);
      return;
    }
    const bytes = await readBody(response, what, { maxBytes: maxBodyBytes, timeoutSeconds: options.timeoutSeconds });
    // A gateway from before allocations could be followed answers over HTTP/1.1 alone, and with what there is now.
    if (status === 200) heard(answerOf(allocationInfo, bytes, what));
    else if (status === 400)
      heard(await authorizedCall<AllocationInfo>('GET', base, allocationInfo, undefined, signal));
    else throw refusalOf(status, bytes, what, response.headers['retry-after']);
  }

  return {
    leaseId,
    follow,
    allocation: (signal) => authorizedCall<AllocationInfo>('GET', base, allocationInfo, undefined, signal),
    voucher: (voucher, signal) =>
      authorizedCall<VoucherReceipt>('POST', `${base}/vouchers`, voucherReceipt, voucher, signal),
    release: (signal) => authorizedCall<ReleaseReceipt>('POST', `${base}/release`, releaseReceipt, {}, signal),
    raw: (request, signal) =>
      authorized(
        (headers) => http.send(under(request, headers), kindOf(request), signal),
        (response) => response.statusCode === 401 && discard(response),
      ),
    upgrade: (request, signal) =>
      authorized(
        (headers) => http.upgrade(under(request, headers), signal),
        (answer) => answer.socket === undefined && answer.response.statusCode === 401 && discard(answer.response),
      ),
  };
}

/** Watches and logs last; everything else is a call whose connection is used again. */
const kindOf = ({ path }: HttpRequest): 'call' | 'stream' | 'watch' =>
  /[?&]watch=true/.test(path) ? 'watch' : /\/log(\?|$)/.test(path) ? 'stream' : 'call';

/** Lets the connection go. */
function discard(response: IncomingMessage): true {
  response.resume();
  return true;
}
