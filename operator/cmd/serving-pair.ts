/**
 * The certificate of a listener: the files that were named, or one of its own, kept where it outlives a restart. What is renewed
 * while the process runs is shown from then on: cert-manager writes a new one every two months, and nobody restarts for that.
 */
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { needsRenewal, type ServingCertificate, selfSigned, spkiSha256 } from '../adapters/gateway/certificate.ts';
import { type Clock, systemClock } from '../engine/clock.ts';
import { every } from '../engine/every.ts';
import type { Log } from '../engine/types.ts';
import { UsageError } from './options.ts';

export interface ServingPair {
  /** As it is now. */
  readonly pair: ServingCertificate;
  readonly spkiSHA256: string;
  /** Nobody but a pin vouches for it. */
  readonly ownMade: boolean;
  /** Looks once a minute whether there is a newer one, until the signal fires. What cannot be used is told, and not shown. */
  follow(
    show: (pair: ServingCertificate) => void,
    options: { readonly log: Log; readonly signal: AbortSignal; readonly clock?: Clock },
  ): Promise<void>;
}

const lookSeconds = 60;

export async function servingPair(options: {
  readonly flags: { readonly cert: string; readonly key: string };
  readonly certFile?: string;
  readonly keyFile?: string;
  readonly hosts: readonly string[];
  /** Gives back what was stored before, or stores what `make` makes. */
  readonly stored: (make: () => Promise<ServingCertificate>) => Promise<ServingCertificate>;
  readonly now: () => Date;
}): Promise<ServingPair> {
  const { flags, certFile, keyFile, hosts, stored, now } = options;
  checkPairGiven(flags, certFile, keyFile);
  let pair: ServingCertificate;
  let read: () => Promise<ServingCertificate>;
  if (certFile !== undefined && keyFile !== undefined) {
    read = async () => fromFiles(flags, certFile, keyFile);
    pair = await read();
  } else {
    pair = await stored(() => selfSigned(hosts, now()));
    // Renewed in memory only, with the stored key: the key is what the other side pins.
    read = async () => (needsRenewal(pair.cert, hosts, now()) ? selfSigned(hosts, now(), pair.key) : pair);
    pair = await read();
  }
  return {
    get pair() {
      return pair;
    },
    get spkiSHA256() {
      return spkiSha256(pair.cert);
    },
    ownMade: certFile === undefined,
    follow: (show, { log, signal, clock = systemClock }) =>
      every(
        lookSeconds,
        'looking for a renewed certificate',
        async () => {
          const found = await read();
          if (found.cert === pair.cert && found.key === pair.key) return;
          show(found);
          pair = found;
          const { validTo } = new X509Certificate(found.cert);
          log.info({ validTo, spkiSHA256: spkiSha256(found.cert) }, 'a renewed certificate is shown from now on');
        },
        { log, signal, clock },
      ),
  };
}

/** Throws UsageError when one is named without the other: at once, where flags are read before anything is reached. */
export function checkPairGiven(
  flags: { readonly cert: string; readonly key: string },
  certFile: string | undefined,
  keyFile: string | undefined,
): void {
  if ((certFile === undefined) !== (keyFile === undefined))
    throw new UsageError(`--${flags.cert} and --${flags.key} are given together, or neither`);
}

function fromFiles(
  flags: { readonly cert: string; readonly key: string },
  certFile: string,
  keyFile: string,
): ServingCertificate {
  const pair = { cert: text(flags.cert, certFile), key: text(flags.key, keyFile) };
  let certificate: X509Certificate;
  try {
    certificate = new X509Certificate(pair.cert);
  } catch {
    throw new UsageError(`--${flags.cert}: ${certFile} holds no PEM certificate`);
  }
  let fits: boolean;
  try {
    fits = certificate.checkPrivateKey(createPrivateKey(pair.key));
  } catch {
    throw new UsageError(`--${flags.key}: ${keyFile} holds no PEM private key without a password`);
  }
  // For a moment that is so while both are being replaced.
  if (!fits) throw new UsageError(`--${flags.key}: ${keyFile} is not the key of the certificate in ${certFile}`);
  return pair;
}

function text(flag: string, file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    throw new UsageError(
      `--${flag}: ${file} cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unreadable'})`,
    );
  }
}
