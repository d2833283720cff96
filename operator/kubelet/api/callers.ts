/**
 * Who calls a virtual node's port, and whether they may: as a kubelet with webhook authorization decides it.
 *
 *   client certificate, signed by the cluster's kubelet-client CA   → its name and groups
 *   bearer token                                                    → TokenReview
 *   then, unless the name is one of those configured                → SubjectAccessReview on nodes/{proxy,…} of that node
 *
 * Nobody without a name gets anything.
 */
import { createHash } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import type { TLSSocket } from 'node:tls';
import { boundedMap } from '../../engine/bounded-map.ts';
import type { Clock } from '../../engine/clock.ts';
import { type Cluster, type KubeObject, resources } from '../../engine/types.ts';

export interface Caller {
  readonly user: string;
  readonly groups: readonly string[];
  readonly uid?: string;
  readonly extra?: Readonly<Record<string, readonly string[]>>;
}

export interface Callers {
  /** Undefined: nobody that is known. */
  identify(request: IncomingMessage, signal?: AbortSignal): Promise<Caller | undefined>;
  /** May the caller do `verb` on any of these subresources of the node? */
  allowed(
    caller: Caller,
    node: string,
    verb: string,
    subresources: readonly string[],
    signal?: AbortSignal,
  ): Promise<boolean>;
}

/** A right that is taken away, or a token that is revoked, counts this much longer. */
const rememberSeconds = 30;

interface TokenReview extends KubeObject {
  spec: { token: string };
  status?: {
    authenticated?: boolean;
    user?: { username?: string; uid?: string; groups?: string[]; extra?: Record<string, string[]> };
  };
}

interface AccessReview extends KubeObject {
  spec: object;
  status?: { allowed?: boolean };
}

export function createCallers(options: {
  readonly cluster: Cluster;
  readonly clock: Clock;
  /** Names that need no further review, e.g. that of the API server's kubelet client. */
  readonly allowedUsers?: readonly string[];
  /** Whether client certificates are checked against a CA at all. */
  readonly verifiesCertificates: () => boolean;
}): Callers {
  const { cluster, clock } = options;
  const tokens = boundedMap<string, { caller: Caller | undefined; untilMs: number }>(1000);
  const decisions = boundedMap<string, { allowed: boolean; untilMs: number }>(5000);
  const until = () => clock.monotonicMs() + rememberSeconds * 1000;

  function ofCertificate(request: IncomingMessage): Caller | undefined {
    const socket = request.socket as TLSSocket;
    // Without a CA of ours Node would take the system's, and the whole Web's certificates would be callers.
    if (!options.verifiesCertificates() || !socket.authorized) return undefined;
    const subject = socket.getPeerCertificate()?.subject;
    const user = one(subject?.CN);
    return user === undefined ? undefined : { user, groups: many(subject?.O) };
  }

  async function ofToken(token: string, signal?: AbortSignal): Promise<Caller | undefined> {
    // Tokens are not kept, not even here.
    const key = createHash('sha256').update(token).digest('hex');
    const known = tokens.get(key);
    if (known && known.untilMs > clock.monotonicMs()) return known.caller;
    const review: TokenReview = { metadata: { name: '' }, spec: { token } };
    const { status } = await cluster.create(resources.tokenReviews, review, signal);
    const name = status?.authenticated === true ? status.user?.username : undefined;
    const caller =
      name === undefined || name === ''
        ? undefined
        : {
            user: name,
            groups: status?.user?.groups ?? [],
            ...(status?.user?.uid && { uid: status.user.uid }),
            ...(status?.user?.extra && { extra: status.user.extra }),
          };
    tokens.set(key, { caller, untilMs: until() });
    return caller;
  }

  return {
    async identify(request, signal) {
      const certified = ofCertificate(request);
      if (certified) return certified;
      const token = /^Bearer ([A-Za-z0-9._~+/=-]{1,16384})$/i.exec(request.headers.authorization ?? '')?.[1];
      return token === undefined ? undefined : ofToken(token, signal);
    },

    async allowed(caller, node, verb, subresources, signal) {
      if (options.allowedUsers?.includes(caller.user)) return true;
      for (const subresource of subresources) {
        const key = JSON.stringify([caller, node, verb, subresource]);
        let known = decisions.get(key);
        if (!known || known.untilMs <= clock.monotonicMs()) {
          const review: AccessReview = {
            metadata: { name: '' },
            spec: {
              user: caller.user,
              groups: caller.groups,
              ...(caller.uid && { uid: caller.uid }),
              ...(caller.extra && { extra: caller.extra }),
              resourceAttributes: { verb, version: 'v1', resource: 'nodes', subresource, name: node },
            },
          };
          const { status } = await cluster.create(resources.subjectAccessReviews, review, signal);
          known = { allowed: status?.allowed === true, untilMs: until() };
          decisions.set(key, known);
        }
        if (known.allowed) return true;
      }
      return false;
    },
  };
}

const one = (value: string | string[] | undefined): string | undefined => (Array.isArray(value) ? value[0] : value);
const many = (value: string | string[] | undefined): string[] =>
  value === undefined ? [] : Array.isArray(value) ? value : [value];
