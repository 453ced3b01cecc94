package vmdk

// geometry is the CHS triple VMware's tools record for a capacity in sectors. It is advisory: nothing derives a
// capacity from it.
func geometry(sectors int64, adapter string) (cylinders, heads, spt int64) {
	switch {
	case adapter == "ide":
		return sectors / 1008, 16, 63
	case sectors < 2097152: // 1 GiB
		return sectors / 2048, 64, 32
	case sectors < 4194304: // 2 GiB
		return sectors / 4096, 128, 32
	}
	return sectors / 16065, 255, 63
}
