package httpx

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
)

// ParseProxies reads addresses and networks, like 192.0.2.1 and 10.0.0.0/8. Errors: a sentence that names the
// one that is neither.
func ParseProxies(texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			ip, err := netip.ParseAddr(text)
			if err != nil {
				return nil, fmt.Errorf("%q is neither an address nor a network like 10.0.0.0/8", text)
			}
			p = netip.PrefixFrom(ip.Unmap(), ip.Unmap().BitLen())
		}
		out = append(out, p)
	}
	return out, nil
}

// ClientAddress is who called, by X-Forwarded-For where the call came from a trusted proxy: the last address
// that no trusted proxy has. The zero Addr where the connection has none.
func ClientAddress(r *http.Request, proxies []netip.Prefix) netip.Addr {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	address := peer.Addr().Unmap()
	if !inAny(proxies, address) {
		return address
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0 && inAny(proxies, address); i-- {
		hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		address = hop.Unmap()
	}
	return address
}

// ClientNetwork is what one client has at least, for limits: an address, or of IPv6 the 64 bits that are given out.
func ClientNetwork(address netip.Addr) string {
	if address.Is4() {
		return address.String()
	}
	p, err := address.WithZone("").Prefix(64)
	if err != nil {
		return address.String()
	}
	return p.String()
}

func inAny(networks []netip.Prefix, ip netip.Addr) bool {
	for _, p := range networks {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}
