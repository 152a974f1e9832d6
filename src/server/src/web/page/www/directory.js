// @ts-check
// The search for accounts by name.
//
// Does not cover: the conversations that match (people.js).

import { distance } from "./text.js";

/** Limits of a search: accounts found, accounts per call, and calls. */
const FOUND = 20;
const FOUND_ROWS = 100;
const PAGES_MAX = 5;

/** Finds accounts whose names contain `query`, best first, and whether there are more.
 * @param {import("./retry.js").Calls} calls @param {string} query */
export async function findAccounts(calls, query) {
  /** @type {Api.Account[]} */
  const people = [];
  let pageToken = "";
  // The answers include deleted accounts. There may be many.
  for (let pages = 0; pages < PAGES_MAX && people.length < FOUND && (pages === 0 || pageToken); pages += 1) {
    const answer = await calls.read("ListAccounts", { query, pageSize: FOUND_ROWS, pageToken });
    people.push(...(answer.accounts ?? []).filter((account) => !account.deleted));
    pageToken = answer.nextPageToken ?? "";
  }
  people.sort((a, b) => distance(a.username, query) - distance(b.username, query));
  return { people: people.slice(0, FOUND), hasMore: pageToken !== "" || people.length > FOUND };
}
