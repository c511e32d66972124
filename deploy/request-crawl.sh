#!/bin/sh
# Asks relays to read a hold (or any other PDS), from any machine: request-crawl.sh HOST [RELAY...]
# Needs curl. Ends with 1 where a relay refused.
set -eu

usage="usage: request-crawl.sh HOST [RELAY...]   HOST is the hold's host name; RELAY defaults to https://bsky.network"
if [ $# -lt 1 ] || [ "$1" = "-h" ] || [ "$1" = "--help" ]; then
	echo "$usage"
	[ $# -ge 1 ]
	exit
fi
host=${1#https://}
host=${host%/}
shift
case $host in
*[!A-Za-z0-9.:-]* | "" | -*)
	echo "not a host name: $host" >&2
	exit 1
	;;
esac
[ $# -gt 0 ] || set -- https://bsky.network

failed=0
for relay in "$@"; do
	case $relay in
	http://* | https://*) ;;
	*) relay=https://$relay ;;
	esac
	if answer=$(curl -sS --max-time 30 --fail-with-body "${relay%/}/xrpc/com.atproto.sync.requestCrawl" \
		-H 'Content-Type: application/json' -d "{\"hostname\":\"$host\"}" 2>&1); then
		echo "$relay will read $host"
	else
		echo "$relay: $answer" >&2
		failed=1
	fi
done
exit $failed
