/** Where a link is dialled, as flags say it. */
import { describe, expect, test } from 'vitest';
import { audienceOf } from '../../../operator/api/link.ts';
import { linkPlace, linkPlaceText } from '../../../operator/cmd/link-place.ts';

const pin = 'a'.repeat(64);
test.each([
  ['wss://relay.example.com', { url: 'wss://relay.example.com' }],
  ['wss://relay.example.com:9444/links', { url: 'wss://relay.example.com:9444/links' }],
  [linkPlaceText('wss://[::1]:9444', pin), { url: 'wss://[::1]:9444', spkiSHA256: pin }],
])('%s is one', (given, place) => expect(linkPlace(given)).toEqual(place));

test.each([
  ['relay.example.com', /must be a URL/],
  ['ws://relay.example.com', /must be a URL/],
  ['wss://user:secret@relay.example.com', /no password/],
  ['wss://relay.example.com?x=1', /no query/],
  ['wss://relay.example.com#spki=abc', /64 lower-case/],
])('%s is none', (given, why) => expect(() => linkPlace(given)).toThrow(why));

describe('a registration is for scheme, host and port', () => {
  test.each([
    ['wss://Relay.Example.com', 'wss://relay.example.com:443'],
    ['https://relay.example.com:443/path', 'wss://relay.example.com:443'],
    ['wss://127.0.0.1:9444/', 'wss://127.0.0.1:9444'],
  ])('%s: %s', (url, audience) => expect(audienceOf(url)).toBe(audience));
});
