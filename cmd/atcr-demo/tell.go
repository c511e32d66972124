package main

import (
	"fmt"
	"io"
	"time"
)

// teller writes what a person reads, line by line. A reader who has gone is no error.
type teller struct {
	out   io.Writer
	start time.Time // of the running step
}

func (t *teller) text(format string, args ...any) { _, _ = fmt.Fprintf(t.out, format, args...) }

// step tells what was done since the last one, and how long it took.
func (t *teller) step(format string, args ...any) {
	t.text("%8s  %s\n", milliseconds(time.Since(t.start)), fmt.Sprintf(format, args...))
	t.start = time.Now()
}

// timed is step for a transfer that began at start.
func (t *teller) timed(start time.Time, size int64, format string, args ...any) {
	took := time.Since(start)
	rate := ""
	if size >= 1e6 {
		rate = fmt.Sprintf(", %.0f MB/s", float64(size)/1e6/took.Seconds())
	}
	t.text("%8s  %s (%s%s)\n", milliseconds(took), fmt.Sprintf(format, args...), megabytes(size), rate)
	t.start = time.Now()
}

func milliseconds(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }

func megabytes(n int64) string {
	if n < 100_000 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%.1f MB", float64(n)/1e6)
}

// tellWhatNext has lines to copy. They work while the demo runs.
func (s *system) tellWhatNext(t *teller) {
	t.text("\nThe registry is http://%s. Its accounts:\n\n", s.registry)
	for _, a := range s.network.Accounts {
		t.text("  %-11s app password %s   %s\n", a.Handle, a.AppPassword, a.DID)
	}
	image := s.registry + "/alice.test/hello:latest"
	mine := s.registry + "/alice.test/mine:1"
	t.text("\nType next:\n\n")
	t.text("  docker pull %s\n", image)
	if runsAnywhere() {
		t.text("  docker run --rm %s\n", image)
	}
	t.text("  docker login %s -u alice.test -p %s\n", s.registry, s.alice.AppPassword)
	t.text("  docker tag %s %s\n", image, mine)
	t.text("  docker push %s\n", mine)
	t.text("\nOr in a browser, with no password for docker (alice.test's own server asks for %s there):\n\n", s.alice.Password)
	t.text("  bin/docker-credential-atcr login %s\n", s.registry)
	t.text("  PATH=$PWD/bin:$PATH bin/docker-credential-atcr configure-docker\n")
	t.text("\nBob's image is for bob alone:\n\n")
	t.text("  docker login %s -u bob.test -p %s\n", s.registry, s.bob.AppPassword)
	t.text("  docker pull %s/bob.test/secret:latest\n", s.registry)
	t.text("\nWhat the registry wrote about alice's image is in her own repo:\n\n")
	t.text("  curl '%s/xrpc/com.atproto.repo.listRecords?repo=alice.test&collection=io.atcr.manifest'\n", s.network.PDSURL)
	t.text("\npublic hold %s   bob's hold %s   PDS %s   directory %s\n", s.public.url, s.private.url, s.network.PDSURL, s.network.PLCURL)
}

func (s *system) whatHappensToData() string {
	if s.temporary {
		return " Its data is then removed."
	}
	return " Its data stays in " + s.data + "."
}
