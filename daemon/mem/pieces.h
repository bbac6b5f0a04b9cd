/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pieces: may slab and bulk cut pieces off large memory? Under a sanitizer they may not: it has to see each by itself, so each
 * comes from the heap.
 * Thread: any, nothing runs here. Locks: none. Blocks: never. Errors: none.
 */
#ifndef KVGATE_DAEMON_MEM_PIECES_H
#define KVGATE_DAEMON_MEM_PIECES_H

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define PIECES_CUT 0
#else
#define PIECES_CUT 1
#endif

#endif
