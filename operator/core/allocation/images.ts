/**
 * Which images tenants may run: the provider's choice, decided at the gateway and again by the admission policy. Both read a
 * reference as container runtimes do: `busybox` is `docker.io/library/busybox`.
 * https://github.com/distribution/reference
 */
export interface ImageRules {
  /** Beginnings of references, such as `ghcr.io/acme/`. Empty: whatever is not denied. */
  readonly allow: readonly string[];
  /** They win over `allow`. */
  readonly deny: readonly string[];
  /** Only images named by their digest, so that what runs is what was looked at. */
  readonly digestsOnly: boolean;
}

export const anyImage: ImageRules = { allow: [], deny: [], digestsOnly: false };

/** Other names of Docker Hub. */
const hubAliases: readonly string[] = ['index.docker.io/', 'registry-1.docker.io/', 'registry.hub.docker.com/'];

export function wholeReference(image: string): string {
  const alias = hubAliases.find((one) => image.startsWith(one));
  const named = alias === undefined ? image : `docker.io/${image.slice(alias.length)}`;
  const [first = '', ...rest] = named.split('/');
  if (rest.length === 0) return `docker.io/library/${named}`;
  if (!/[.:]/.test(first) && first !== 'localhost') return `docker.io/${named}`;
  return first === 'docker.io' && rest.length === 1 ? `docker.io/library/${rest[0]}` : named;
}

const digest = '@sha256:[0-9a-f]{64}$';

/** Why it may not be run; undefined: it may. */
export function imageRefusal(image: string, rules: ImageRules): string | undefined {
  const reference = wholeReference(image);
  const denied = rules.deny.find((beginning) => reference.startsWith(beginning));
  if (denied !== undefined) return `is denied by this provider (${denied})`;
  if (rules.allow.length > 0 && !rules.allow.some((beginning) => reference.startsWith(beginning)))
    return `is not of those that this provider allows: ${rules.allow.slice(0, 8).join(', ')}`;
  if (rules.digestsOnly && !new RegExp(digest).test(reference))
    return 'must be named by its digest (name@sha256:…): this provider runs no tags';
  return undefined;
}

/** CEL of the same decision; `image` is CEL of a string. Undefined: nothing to ask. */
export function imageAllowedCel(image: string, rules: ImageRules): string | undefined {
  const list = (beginnings: readonly string[]) => `[${beginnings.map((one) => `'${one}'`).join(', ')}]`;
  const asked: string[] = [];
  if (rules.deny.length > 0) asked.push(`!${list(rules.deny)}.exists(b, r.startsWith(b))`);
  if (rules.allow.length > 0) asked.push(`${list(rules.allow)}.exists(b, r.startsWith(b))`);
  if (rules.digestsOnly) asked.push(`r.matches('${digest}')`);
  if (asked.length === 0) return undefined;
  const named = hubAliases.reduce(
    (so, alias) => `(${image}.startsWith('${alias}') ? 'docker.io/' + ${image}.substring(${alias.length}) : ${so})`,
    image,
  );
  const whole = (n: string) =>
    `(!${n}.contains('/') ? 'docker.io/library/' + ${n}` +
    ` : !${n}.split('/')[0].matches('[.:]') && ${n}.split('/')[0] != 'localhost' ? 'docker.io/' + ${n}` +
    ` : ${n}.matches('^docker\\\\.io/[^/]+$') ? 'docker.io/library/' + ${n}.substring(10) : ${n})`;
  return `[${named}].map(n, ${whole('n')}).all(r, ${asked.join(' && ')})`;
}

/** A beginning that can be written into a policy as it stands. */
export const isImageBeginning = (text: string): boolean => /^[a-z0-9][a-zA-Z0-9._:/@-]{0,254}$/.test(text);
