/**
 * Tokens of the consumer's service accounts that a pod's volumes ask for, where its lease lets them out. They are asked for
 * with TokenRequest, bound to the pod, and lie in one Secret at the provider that belongs to the remote pod.
 * https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#bound-service-account-tokens
 */
import { sha256Hex } from './sha256.ts';

export interface TokenWish {
  /** Key in the Secret. */
  readonly key: string;
  /** Empty: the API server's own. */
  readonly audience: string;
  readonly expirationSeconds: number;
}

/** Kubernetes gives tokens for no less. */
const leastSeconds = 600;
/**
 * The longest life of a token that leaves the cluster. Also keeps clear of 3607 s, which Kubernetes' own volume asks for: an
 * API server reads that number as "of an old client" and makes the token last a year.
 */
const mostSeconds = 3600;
const usualSeconds = 3600;

export function tokenWish(audience: string | undefined, expirationSeconds: number | undefined): TokenWish {
  const seconds = Math.min(mostSeconds, Math.max(leastSeconds, expirationSeconds ?? usualSeconds));
  return {
    key: `token-${sha256Hex(`${audience ?? ''}\n${seconds}`).slice(0, 16)}`,
    audience: audience ?? '',
    expirationSeconds: seconds,
  };
}

/** The Secret's name, from the remote pod's. */
export const tokenSecretName = (remotePod: string): string => `${remotePod}-tokens`;

/** Whether a pod at the provider shows its tokens: one that was made before the lease let them out does not. Untrusted. */
export function showsTokens(remote: { metadata: { name: string }; spec?: { volumes?: unknown } }): boolean {
  const name = tokenSecretName(remote.metadata.name);
  const { volumes } = remote.spec ?? {};
  const sources = (volume: { projected?: { sources?: unknown } } | null) => volume?.projected?.sources;
  return (
    Array.isArray(volumes) &&
    volumes.some((volume) => {
      const list = sources(volume);
      return Array.isArray(list) && list.some((source) => source?.secret?.name === name);
    })
  );
}

/** All of a pod that `showsTokens` looks at. */
export const onlyTokens = (remote: { metadata: { name: string }; spec?: { volumes?: unknown } }) =>
  showsTokens(remote)
    ? {
        volumes: [
          { name: 'tokens', projected: { sources: [{ secret: { name: tokenSecretName(remote.metadata.name) } }] } },
        ],
      }
    : {};

/** When a token is replaced: at 80 % of its life, as a kubelet does. */
export function refreshAt(issued: Date, expires: Date): Date {
  return new Date(issued.getTime() + (expires.getTime() - issued.getTime()) * 0.8);
}
