/** The certificate of a listener for links: the files that were named, or one of its own, kept where it outlives a restart. */
import { readFileSync } from 'node:fs';
import { needsRenewal, type ServingCertificate, selfSigned, spkiSha256 } from '../adapters/gateway/certificate.ts';
import { UsageError } from './options.ts';

export async function servingPair(options: {
  readonly flags: { readonly cert: string; readonly key: string };
  readonly certFile?: string;
  readonly keyFile?: string;
  readonly hosts: readonly string[];
  /** Gives back what was stored before, or stores what `make` makes. */
  readonly stored: (make: () => Promise<ServingCertificate>) => Promise<ServingCertificate>;
  readonly now: () => Date;
}): Promise<ServingCertificate & { readonly spkiSHA256: string; readonly ownMade: boolean }> {
  const { flags, certFile, keyFile, hosts, stored, now } = options;
  if ((certFile === undefined) !== (keyFile === undefined))
    throw new UsageError(`--${flags.cert} and --${flags.key} are given together, or neither`);
  if (certFile !== undefined && keyFile !== undefined) {
    const pair = { cert: read(flags.cert, certFile), key: read(flags.key, keyFile) };
    try {
      return { ...pair, spkiSHA256: spkiSha256(pair.cert), ownMade: false };
    } catch {
      throw new UsageError(`--${flags.cert}: ${certFile} holds no PEM certificate`);
    }
  }
  const found = await stored(() => selfSigned(hosts, now()));
  // Renewed in memory only, with the stored key: the key is what gateways pin.
  const pair = needsRenewal(found.cert, hosts, now()) ? await selfSigned(hosts, now(), found.key) : found;
  return { ...pair, spkiSHA256: spkiSha256(pair.cert), ownMade: true };
}

function read(flag: string, file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    throw new UsageError(
      `--${flag}: ${file} cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unreadable'})`,
    );
  }
}
