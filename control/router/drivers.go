package router

// The drivers of every build register themselves.
import (
	_ "millrace/pmd/afpacket"
	_ "millrace/pmd/afxdp"
	_ "millrace/pmd/mem"
	_ "millrace/pmd/memif"
	_ "millrace/pmd/pcap"
	_ "millrace/pmd/tap"
)
