/** Where a link is dialled, as a flag says it: a URL, with the pin of its key at the end. */
import { audienceOf } from '../api/link.ts';

export interface LinkPlace {
  /** wss, without the pin. */
  readonly url: string;
  readonly spkiSHA256?: string;
}

export function linkPlace(text: string): LinkPlace {
  const at = text.indexOf('#');
  const url = at < 0 ? text : text.slice(0, at);
  audienceOf(url);
  const { search, username, password } = new URL(url);
  if (search || username || password) throw new Error('must have no query and no password');
  if (at < 0) return { url };
  const pin = /^spki=([0-9a-f]{64})$/.exec(text.slice(at + 1));
  if (!pin) throw new Error('must end with #spki= and 64 lower-case hexadecimal digits, or with nothing');
  return { url, spkiSHA256: pin[1]! };
}

/** For people to paste. */
export const linkPlaceText = (url: string, spkiSHA256: string): string => `${url}#spki=${spkiSHA256}`;
